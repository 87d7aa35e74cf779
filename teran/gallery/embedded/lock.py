"""A directory of galleries belongs to one process: the lock says so, and names it."""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

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


def lock_directory(root: Path) -> TextIO:
    """Lock a directory for this process, until what is returned is closed.

    Raises:
        GalleryError: another process holds it; the message says which.
    """
    file = os.fdopen(os.open(root / LOCK, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with file:
            raise GalleryError(
                f"{root} is in use by {_holder(file.fileno())}; give this server another "
                "directory with --gallery"
            ) from error
    file.truncate(0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    print(f"process {os.getpid()} since {since}", file=file, flush=True)
    return file
