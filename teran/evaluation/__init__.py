"""Retrieval metrics, computed from score matrices."""
