"""A directory of galleries belongs to one process: the lock says so, and names it."""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

from teran.errors import GalleryError

LOCK = "LOCK"


def holder_of(root: Path) -> str | None:
    """The process that has a directory open, as far as it has said, or None."""
    try:
        descriptor = os.open(root / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder(descriptor)
    finally:
        os.close(descriptor)
    return None


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"


def lock_directory(root: Path) -> int:
    """Lock a directory for this process.

    Raises:
        GalleryError: another process holds it; the message says which.
    """
    descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise GalleryError(
            f"{root} is in use by {holder}; give this server another directory with --gallery"
        ) from error
    os.ftruncate(descriptor, 0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.pwrite(descriptor, f"process {os.getpid()} since {since}\n".encode(), 0)
    return descriptor
