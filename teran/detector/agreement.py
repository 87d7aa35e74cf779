"""How far a detector agrees with the original one, on photos whose regions that one has found.

The original's own form: a table of tabs, `*.tsv`, with `img_id`, `img_h`, `img_w`, `num_boxes`, and
`boxes` and `features` as base64 of fp32; and the photos beside it.
"""

import base64
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teran.contract import PHOTO_SUFFIXES
from teran.detector.boxes import Floats, overlaps
from teran.detector.decode import decode
from teran.detector.detector import RegionDetector
from teran.errors import TeranInputError

_FIELDS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf",
    "attrs_id", "attrs_conf", "num_boxes", "boxes", "features",
)  # fmt: skip
MATCHED = 0.9
"""Least intersection over union of boxes that are taken for the same."""


@dataclass(frozen=True, eq=False)
class Original:
    """What the original detector found in a photo."""

    name: str
    boxes: Floats
    """(R, 4), in the photo's pixels."""
    features: Floats
    """(R, F)"""


@dataclass(frozen=True)
class Agreement:
    """Of a photo, or of several."""

    name: str
    regions: int
    """Of the original."""
    matched: int
    """Of those, the ones that the detector finds too: their boxes overlap by `MATCHED`."""
    overlap: float
    """Mean intersection over union of the original's boxes with the nearest found."""
    mean_difference: float
    """Of the values of matched regions' features; their own mean is about 0.7."""
    max_difference: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.matched} of {self.regions} regions found, mean overlap "
            f"{self.overlap:.3f}; features differ by {self.mean_difference:.4f} on average, "
            f"{self.max_difference:.3f} at most"
        )


def originals(table: Path) -> Iterator[Original]:
    """Read a table.

    Raises:
        TeranInputError: it is missing or damaged; names the line.
    """
    csv.field_size_limit(1 << 30)
    try:
        with table.open(encoding="ascii", newline="") as file:
            for number, row in enumerate(csv.DictReader(file, _FIELDS, delimiter="\t"), 1):
                try:
                    count = int(row["num_boxes"])
                    boxes, features = (
                        np.frombuffer(base64.b64decode(row[name], validate=True), np.float32)
                        for name in ("boxes", "features")
                    )
                    yield Original(
                        row["img_id"], boxes.reshape(count, 4), features.reshape(count, -1)
                    )
                except (ValueError, TypeError, KeyError) as error:
                    raise TeranInputError(f"{table}, line {number}: {error}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TeranInputError(f"{table} can't be read: {error}") from error


def compare(detector: RegionDetector, folder: Path) -> Iterator[Agreement]:
    """Detect regions in every photo that a folder has the original's of.

    Args:
        detector: of as many regions as the original found, usually 36.
        folder: with a `.tsv`, and photos anywhere in it by the names in that.

    Raises:
        TeranInputError: there is no table, or a photo of it is missing.
    """
    tables = sorted(folder.glob("*.tsv"))
    if not tables:
        raise TeranInputError(f"{folder} has no .tsv of the original's regions")
    photos = {
        path.stem: path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES
    }
    for table in tables:
        for original in originals(table):
            if original.name not in photos:
                raise TeranInputError(f"{folder} has no photo {original.name}, which {table} has")
            (found,) = detector.detect([decode(photos[original.name].read_bytes())])
            if found.features.shape[1] != original.features.shape[1]:
                raise TeranInputError(
                    f"the detector's features have {found.features.shape[1]} values, those in "
                    f"{table} have {original.features.shape[1]}"
                )
            yield agreement(original, found.boxes, found.features)


def agreement(original: Original, boxes: Floats, features: Floats) -> Agreement:
    """Compare one photo's regions with the original's."""
    over = overlaps(original.boxes, boxes)
    nearest, best = over.argmax(axis=1), over.max(axis=1)
    same = best >= MATCHED
    difference = np.abs(original.features[same] - features[nearest[same]])
    return Agreement(
        original.name,
        len(original.boxes),
        int(same.sum()),
        float(best.mean()),
        float(difference.mean()) if same.any() else float("nan"),
        float(difference.max()) if same.any() else float("nan"),
    )


def total(found: list[Agreement]) -> Agreement:
    """Of all photos together."""
    matched = sum(one.matched for one in found)
    some = [one for one in found if one.matched]
    return Agreement(
        f"{len(found)} photos",
        sum(one.regions for one in found),
        matched,
        float(np.mean([one.overlap for one in found])),
        sum(one.mean_difference * one.matched for one in some) / max(matched, 1),
        max((one.max_difference for one in some), default=float("nan")),
    )
