"""Embeddings on disk, some hundred items in a file: an evaluation that was cut off goes on."""

import json
import os
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import numpy.typing as npt

import teran
from teran.errors import TeranInputError

Floats = npt.NDArray[np.float32]
_FORMAT = 1
"""Changes with what is made of the same items by the same weights."""
CHUNK = 500
"""Items of a file."""


def default_directory() -> Path:
    """Where caches lie by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "teran" / "evaluation"


class EmbeddingCache:
    """What one road has made of one kind of items."""

    def __init__(self, directory: Path, *identity: str) -> None:
        """Take the folder of whatever the identity names.

        Args:
            directory: of all caches.
            identity: everything that embeddings depend on.
        """
        key = json.dumps([_FORMAT, teran.__version__, *identity]).encode()
        self.directory = directory / sha256(key).hexdigest()[:24]

    def fill(
        self,
        items: int,
        encode: Callable[[slice], list[Floats]],
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[Floats]:
        """Read the embeddings of all items, and encode those that are not there.

        Args:
            items: how many there are.
            encode: encodes a range of them, rows (n, E) each.
            progress: told how many more are done.

        Raises:
            TeranInputError: nothing can be written there.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TeranInputError(f"can't keep embeddings in {self.directory}: {error}") from error
        found: list[Floats] = []
        for first in range(0, items, CHUNK):
            part = slice(first, min(first + CHUNK, items))
            path = self.directory / f"{first:07d}.npz"
            rows = _read(path, part.stop - first)
            if rows is None:
                rows = encode(part)
                _write(path, rows)
            found += rows
            progress(len(rows))
        return found


def _read(path: Path, items: int) -> list[Floats] | None:
    """What a file holds, or None where it is not there or not whole."""
    try:
        with np.load(path, allow_pickle=False) as arrays:  # zip's checksums are checked
            rows, counts = arrays["rows"], arrays["counts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if len(counts) != items or counts.sum() != len(rows):
        return None
    return list(np.split(rows, np.cumsum(counts)[:-1]))


def _write(path: Path, found: list[Floats]) -> None:
    with NamedTemporaryFile(dir=path.parent, suffix=".unfinished", delete=False) as file:
        np.savez(file, rows=np.concatenate(found), counts=[len(one) for one in found])
    Path(file.name).replace(path)  # another evaluation may write the same
