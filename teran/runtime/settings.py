"""Options that the gallery's process reads for itself, which the supervisor passes on to it."""

from dataclasses import KW_ONLY
from pathlib import Path

from teran.commandline import Positive, options


@options
class Cluster:
    """Where galleries are, if not in a directory."""

    _: KW_ONLY
    gallery_url: str | None = None
    """A Qdrant cluster that holds the galleries, http://host:6333, not the directory."""
    gallery_api_key: str | None = None
    """The cluster's key."""


@options
class GallerySettings(Cluster):
    """What galleries are kept in, searched on, and changed with."""

    _: KW_ONLY
    gallery: Path | None = None
    """Directory of the galleries; by default REPOSITORY.gallery."""
    gallery_flush: bool = False
    """Acknowledge a write only when it would survive a loss of power."""
    gallery_snapshots: Positive = 100
    """Snapshots kept in the directory, beyond which none is written."""
    gallery_device: str = "cpu"
    """Where to scan: cpu, cuda or cuda:N."""
    gallery_precision: str = "fp16"
    """Of a GPU's copy: fp16, bf16 or fp8."""
    write_key: str | None = None
    """Asked for by calls that change galleries."""
