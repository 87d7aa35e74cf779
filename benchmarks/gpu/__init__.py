"""The GPU checklist."""
