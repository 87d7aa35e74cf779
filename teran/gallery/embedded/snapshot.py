"""A gallery in one file: a tar with everything its store holds, and a list to check it by.

The list comes last, so a file that was cut off has none.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from teran.errors import GalleryError
from teran.gallery.embedded.files import digest, files_in, sparse_file, sync_directory, sync_names

_LIST = "snapshot.json"


def write_snapshot(directory: Path, items: int, path: Path) -> None:
    """Write the gallery in `directory`, which has so many items, to `path`.

    Raises:
        OSError: it can't be written; what there is of it has to be removed.
    """
    files = {
        "gallery.json",
        *(str(file.relative_to(directory)) for file in files_in(directory / "store")),
    }
    digests = {name: digest(directory / name) for name in sorted(files)}
    data = json.dumps({"items": items, "files": digests}, indent=1).encode()
    with sparse_file(path) as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name in digests:
            archive.add(directory / name, name)
        entry = tarfile.TarInfo(_LIST)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    sync_directory(path.parent)


def extract_snapshot(path: Path, directory: Path) -> int:
    """Extract a snapshot to `directory`, checked to be what was written; returns its item count.

    Raises:
        GalleryError: it is damaged.
        OSError: it can't be read, or not be extracted.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                _extract(archive, tarfile.data_filter(member, str(directory)), directory)
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
    there = {str(file.relative_to(directory)) for file in files_in(directory)}
    if there != wanted.keys():
        raise GalleryError(
            f"it is damaged: {sorted(there ^ wanted.keys())[0]} is missing or foreign"
        )
    for name, sum_ in wanted.items():
        if digest(directory / name) != sum_:
            raise GalleryError(f"it is damaged: {name} has changed since it was written")
    sync_names(directory)
    return items


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> None:
    content = archive.extractfile(member) if member.isfile() else None
    if content is None:
        raise GalleryError(f"it is damaged: {member.name} is no file")
    path = directory / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with content, sparse_file(path) as file:
        shutil.copyfileobj(content, file)
