"""Measurements: honest, repeatable, with their results committed."""
