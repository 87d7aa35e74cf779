"""A gallery in one file: a tar with everything its store holds, and a list to check it by.

The list comes last, so a file that was cut off has none.
"""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

from teran.errors import GalleryError
from teran.gallery.embedded.files import digest, files_in, sync_directory, sync_tree

_LIST = "snapshot.json"


def write_snapshot(directory: Path, items: int, path: Path) -> None:
    """Write the gallery in `directory`, which has so many items, to `path`.

    Raises:
        OSError: it can't be written; what there is of it has to be removed.
    """
    files = {
        "gallery.json",
        *(str(f.relative_to(directory)) for f, _ in files_in(directory / "store")),
    }
    digests = {name: digest(directory / name) for name in sorted(files)}
    data = json.dumps({"items": items, "files": digests}, indent=1).encode()
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name in digests:
                archive.add(directory / name, name)
            entry = tarfile.TarInfo(_LIST)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        file.flush()
        os.fsync(file.fileno())
    sync_directory(path.parent)


def extract_snapshot(path: Path, directory: Path) -> int:
    """Extract a snapshot to `directory`, checked to be what was written; returns its item count.

    Raises:
        GalleryError: it is damaged.
        OSError: it can't be read, or not be extracted.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            archive.extractall(directory, filter="data")
        content = json.loads((directory / _LIST).read_bytes())
        wanted: dict[str, Any] = content["files"]
        items = int(content["items"])
    except (
        tarfile.TarError,
        EOFError,
        FileNotFoundError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise GalleryError(f"it is cut off or damaged: {error}") from error
    (directory / _LIST).unlink()
    there = {str(file.relative_to(directory)) for file, _ in files_in(directory)}
    if there != wanted.keys():
        raise GalleryError(
            f"it is damaged: {sorted(there ^ wanted.keys())[0]} is missing or foreign"
        )
    for name, sum_ in wanted.items():
        if digest(directory / name) != sum_:
            raise GalleryError(f"it is damaged: {name} has changed since it was written")
    sync_tree(directory)
    return items
