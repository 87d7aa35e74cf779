"""The container and its check."""
