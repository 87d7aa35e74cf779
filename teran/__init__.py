"""TERAN: fine-grained image-text matching by aligning image regions with words."""

__version__ = "0.1.0"
