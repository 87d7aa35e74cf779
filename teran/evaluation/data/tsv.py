"""Regions as bottom-up attention writes them: a table of tabs, arrays in base 64."""

import base64
import binascii
from pathlib import Path

import numpy as np

from teran.errors import TeranInputError
from teran.evaluation.data.regions import Regions, fingerprint_of

_COLUMNS = {
    6: {"width": 1, "height": 2, "regions": 3, "boxes": 4, "features": 5},
    10: {"width": 2, "height": 1, "regions": 7, "boxes": 8, "features": 9},
}
"""By how many there are: bottom-up attention's own, and those of its port to Python with objects
and attributes, which has the height first. The id is always the first."""


class TsvSource:
    """One or several tables; images are found by the place of their lines."""

    def __init__(self, path: Path) -> None:
        """Go through a table, or through all of a directory.

        Raises:
            TeranInputError: there is none, or a line is none of the known forms.
        """
        files = sorted(path.glob("*.tsv")) if path.is_dir() else [path]
        self._places: dict[str, tuple[Path, int]] = {}
        for file in files:
            try:
                with file.open("rb") as lines:
                    place = 0
                    for number, line in enumerate(lines, start=1):
                        columns = line.count(b"\t") + 1
                        if columns not in _COLUMNS:
                            raise TeranInputError(
                                f"{file}, line {number}: {columns} columns; "
                                f"known are {' and '.join(map(str, _COLUMNS))}"
                            )
                        name = line[: line.index(b"\t")].decode(errors="replace")
                        self._places[image_id(name)] = file, place
                        place += len(line)
            except OSError as error:
                raise TeranInputError(f"can't read {file}: {error}") from error

    def ids(self) -> list[str]:
        """Of all images, in the order of the lines."""
        return list(self._places)

    def fingerprint(self) -> str:
        """What changes when a file does, or its place."""
        return fingerprint_of(sorted({file for file, _ in self._places.values()}))

    def read(self, image: str) -> Regions:
        """Read an image.

        Raises:
            TeranInputError: it is not there, or its line is damaged.
        """
        if image not in self._places:
            raise TeranInputError(f"image {image} is in none of the tables")
        file, place = self._places[image]
        with file.open("rb") as lines:
            lines.seek(place)
            cells = lines.readline().rstrip(b"\r\n").split(b"\t")
        column = {name: cells[i] for name, i in _COLUMNS[len(cells)].items()}
        try:
            count = int(column["regions"])
            size = int(column["width"]), int(column["height"])
            features, boxes = (
                np.frombuffer(base64.b64decode(column[name], validate=True), "<f4").reshape(
                    count, width
                )
                for name, width in (("features", -1), ("boxes", 4))
            )
        except (ValueError, binascii.Error) as error:
            raise TeranInputError(f"{file}: the line of image {image}: {error}") from error
        return Regions.from_pixels(features, boxes, size, f"image {image}")


def image_id(name: str) -> str:
    """The id of an image in COCO: `COCO_train2014_000000132417` is 132417; others as they are."""
    number = name.rsplit("_", 1)[-1]
    return str(int(number)) if number.isdecimal() else name
