"""Our own format: shards of arrays that are mapped into memory, each with its checksums.

A shard is complete once its description is there, which is written last; so a run that was cut off
goes on behind the last one.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError
from teran.evaluation.data.captions import read_json
from teran.evaluation.data.regions import Floats, Regions, RegionSource

PACK_FILE = "pack.json"
_VERSION = 1
_ARRAYS = ("features", "boxes", "counts")
_SHARD = 1000
"""Images."""
_OPEN = 16
"""Shards that are mapped at a time."""


@dataclass(frozen=True)
class Refused:
    """An image that could not be packed."""

    image: str
    reason: str


class PackedSource:
    """A packed directory."""

    def __init__(self, directory: Path) -> None:
        """Open it.

        Raises:
            TeranInputError: it was not packed to its end, or its description is damaged.
        """
        found = read_json(directory / PACK_FILE)
        if found.get("version") != _VERSION:
            raise TeranInputError(
                f"{directory} is packed in the format {found.get('version')}, not {_VERSION}"
            )
        self._directory = directory
        self._places: dict[str, tuple[int, int]] = {}
        try:
            self._shards = [_read_shard(directory, number) for number in range(found["shards"])]
        except (KeyError, TypeError) as error:
            raise TeranInputError(f"{directory / PACK_FILE} is damaged: {error!r}") from error
        for number, shard in enumerate(self._shards):
            self._places |= {image: (number, place) for place, image in enumerate(shard["ids"])}
        self._open: OrderedDict[int, tuple[Floats, Floats, list[int]]] = OrderedDict()

    def ids(self) -> list[str]:
        """Of all images, in the order they lie."""
        return list(self._places)

    def fingerprint(self) -> str:
        """What changes when the arrays do, wherever they lie."""
        sums = [shard["sha256"] for shard in self._shards]
        return sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()

    def read(self, image: str) -> Regions:
        """Map an image's arrays.

        Raises:
            TeranInputError: it is not there.
        """
        if image not in self._places:
            raise TeranInputError(f"image {image} is not in {self._directory}")
        number, place = self._places[image]
        features, boxes, ends = self._arrays(number)
        rows = slice(ends[place - 1] if place else 0, ends[place])
        return Regions(features[rows], boxes[rows])

    def verify(self) -> list[str]:
        """Files that are not as they were packed."""
        return [
            file.name
            for number, shard in enumerate(self._shards)
            for name in _ARRAYS
            if not (file := _file(self._directory, number, name)).is_file()
            or _digest(file) != shard["sha256"][name]
        ]

    def _arrays(self, number: int) -> tuple[Floats, Floats, list[int]]:
        if number not in self._open:
            files = [_file(self._directory, number, name) for name in _ARRAYS]
            try:
                features, boxes, counts = (np.load(file, mmap_mode="r") for file in files)
            except (OSError, ValueError, EOFError) as error:
                raise TeranInputError(f"can't read shard {number}: {error}") from error
            ends = np.cumsum(counts).tolist()
            if not len(features) == len(boxes) == ends[-1]:
                raise TeranInputError(f"shard {number} of {self._directory} is damaged")
            self._open[number] = features, boxes, ends
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]


def pack(
    source: RegionSource,
    images: Sequence[str],
    directory: Path,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Refused]:
    """Pack images; a run that was cut off before is gone on with.

    Args:
        source: where they are.
        images: their ids.
        directory: an empty one, or that of the run before.
        progress: told how many images are done, or were done before.

    Returns:
        Those that could not be read, with the reason. The rest is packed.

    Raises:
        TeranInputError: the directory was begun with other images.
    """
    directory.mkdir(parents=True, exist_ok=True)
    refused: list[Refused] = []
    shards = [images[first : first + _SHARD] for first in range(0, len(images), _SHARD)]
    origin = source.fingerprint()
    begun = [_begun(directory, number, wanted, origin) for number, wanted in enumerate(shards)]
    (directory / PACK_FILE).unlink(missing_ok=True)
    for number, (wanted, shard) in enumerate(zip(shards, begun, strict=True)):
        if shard is None:
            shard = _write_shard(directory, number, source, wanted, progress) | {"source": origin}
            _write_json(_description(directory, number), shard)
        else:
            progress(len(wanted))
        refused += [Refused(*one) for one in shard["refused"]]
    _write_json(directory / PACK_FILE, {"version": _VERSION, "shards": len(shards)})
    return refused


def _begun(
    directory: Path, number: int, wanted: Sequence[str], source: str
) -> dict[str, Any] | None:
    """A shard of the run before, if nothing was missing and its source is as it was."""
    if not _description(directory, number).is_file():
        return None
    shard = _read_shard(directory, number)
    if shard["wanted"] != list(wanted):
        raise TeranInputError(
            f"{directory} was begun with other images; choose another, or remove it"
        )
    return None if shard["refused"] or shard.get("source") != source else shard


def _write_shard(
    directory: Path,
    number: int,
    source: RegionSource,
    wanted: Sequence[str],
    progress: Callable[[int], None],
) -> dict[str, Any]:
    kept: dict[str, Regions] = {}
    refused: list[tuple[str, str]] = []
    for image in wanted:
        try:
            regions = source.read(image)
            width = next(iter(kept.values()), regions).features.shape[1]
            if regions.features.shape[1] != width:
                raise TeranInputError(
                    f"image {image} has features of {regions.features.shape[1]} numbers, "
                    f"others have {width}"
                )
            kept[image] = regions
        except TeranInputError as error:
            refused.append((image, str(error)))
        progress(1)
    arrays: dict[str, list[npt.NDArray[Any]]] = {
        "features": [one.features for one in kept.values()] or [np.zeros((0, 0), np.float32)],
        "boxes": [one.boxes for one in kept.values()] or [np.zeros((0, 4), np.float32)],
        "counts": [np.array([len(one) for one in kept.values()], np.int64)],
    }
    for name, parts in arrays.items():
        np.save(_file(directory, number, name), np.concatenate(parts))
    return {
        "wanted": list(wanted),
        "ids": list(kept),
        "refused": refused,
        "sha256": {name: _digest(_file(directory, number, name)) for name in _ARRAYS},
    }


def _read_shard(directory: Path, number: int) -> dict[str, Any]:
    shard = read_json(_description(directory, number))
    if not shard.keys() >= {"wanted", "ids", "refused", "sha256"}:
        raise TeranInputError(f"{_description(directory, number)} is damaged")
    return shard


def _file(directory: Path, number: int, name: str) -> Path:
    return directory / f"{number:05d}.{name}.npy"


def _description(directory: Path, number: int) -> Path:
    return directory / f"{number:05d}.json"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is there whole, or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content) + "\n")
    unfinished.replace(path)
