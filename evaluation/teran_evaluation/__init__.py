"""Evaluation by the paper's protocols, of a model or of what serves it."""
