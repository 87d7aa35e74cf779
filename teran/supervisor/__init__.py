"""Finds, runs and supervises the Triton server, and what its Python-based backends share."""
