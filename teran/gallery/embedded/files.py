"""Files that are there whole or not at all, also after a loss of power, and the room for them."""

import hashlib
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from teran.errors import GalleryError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_BLOCK = 1 << 16
"""Bytes that are a hole if they are all zeros."""
RESERVE = 256 << 20
"""Bytes an upsert leaves free on the disk. The engine maps its files, and a process that touches a
mapped page the disk has no room for is killed."""


def write_durably(path: Path, text: str) -> None:
    """Write a small file; on return it is on the disk, and before that the old one is.

    Raises:
        OSError: it can't be written.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    rename_durably(temporary, path)


def rename_durably(source: Path, target: Path) -> None:
    """Rename within one file system; on return the new name is on the disk.

    Raises:
        OSError: it can't be done.
    """
    source.rename(target)
    sync_directory(target.parent)


def make_directory(directory: Path) -> None:
    """Make a directory for its user alone where there is none; on return it is on the disk.

    Raises:
        OSError: it can't be made.
    """
    if not directory.is_dir():
        directory.mkdir(mode=0o700)
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to the disk.

    Raises:
        OSError: it can't be done.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(directory: Path) -> None:
    """Bring all names in and below a directory to the disk, and its own.

    The deepest come first, so that no directory is there without what is in it.

    Raises:
        OSError: it can't be done.
    """
    for folder, _, _ in os.walk(directory, topdown=False):
        sync_directory(Path(folder))
    sync_directory(directory.parent)


def sync_tree(directory: Path) -> None:
    """Bring a directory with all that is in it to the disk.

    Raises:
        OSError: it can't be done.
    """
    for path in files_in(directory):
        sync_file(path)
    sync_names(directory)


def sync_file(path: Path) -> None:
    """Bring a file to the disk.

    Raises:
        OSError: it can't be done.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of some bytes at an offset, in as many steps as the system takes.

    Raises:
        OSError: they can't be written.
    """
    data = data.cast("B")
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def files_in(directory: Path) -> Iterator[Path]:
    """All files below a directory."""
    for folder, _, names in os.walk(directory):
        yield from (Path(folder, name) for name in names)


def room_of(directory: Path) -> int:
    """Bytes that a directory's files take on the disk, without their holes."""
    room = 0
    for path in files_in(directory):
        with suppress(FileNotFoundError):  # it has gone meanwhile
            room += 512 * path.stat().st_blocks
    return room


def require_free(directory: Path, size: int) -> None:
    """Refuse to write so many bytes where they would not leave the reserve free.

    Raises:
        GalleryError: they would not.
    """
    free, needed = shutil.disk_usage(directory).free, RESERVE + size
    if free < needed:
        raise GalleryError(
            f"the disk of {directory} is nearly full: {free >> 20} MiB are free, "
            f"{needed >> 20} MiB are needed to write safely; nothing was written"
        )


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory, with the holes in its files.

    Raises:
        OSError: it can't be read or written.
    """
    shutil.copytree(source, target, copy_function=_copy_file)


def _copy_file(source: str, target: str) -> None:
    with Path(source).open("rb") as file, sparse_file(Path(target)) as copy:
        shutil.copyfileobj(file, copy, _BLOCK)


@contextmanager
def sparse_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that has holes where zeros are written; it is on the disk in the end.

    Raises:
        OSError: it can't be written.
    """
    with io.BufferedWriter(_SparseFile(path, "w"), _BLOCK) as file:
        yield file
        file.truncate()
        os.fsync(file.fileno())


class _SparseFile(io.FileIO):
    def write(self, data: "ReadableBuffer", /) -> int:
        values = bytes(data)
        if values == bytes(len(values)):
            self.seek(len(values), os.SEEK_CUR)
            return len(values)
        return super().write(values)


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
