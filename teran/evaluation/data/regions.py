"""The regions of one image, and where those of many come from."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Regions:
    """Features (R, F) and boxes (R, 4), as fractions of width and height."""

    features: Floats
    boxes: Floats

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def from_pixels(
        cls, features: npt.ArrayLike, boxes: npt.ArrayLike, size: tuple[int, int], name: str
    ) -> "Regions":
        """Check what was read of an image, and bring its boxes to fractions.

        Args:
            features: (R, F).
            boxes: (R, 4), x1, y1, x2, y2 in pixels.
            size: width and height.
            name: what to call the image in errors.

        Raises:
            TeranInputError: something of it can't be.
        """
        features, boxes = np.asarray(features, np.float32), np.asarray(boxes, np.float32)
        if features.ndim != 2 or not features.size:
            raise TeranInputError(f"{name}: features have the shape {features.shape}, not (R, F)")
        if boxes.shape != (len(features), 4):
            raise TeranInputError(
                f"{name}: {len(features)} regions, but boxes of the shape {boxes.shape}"
            )
        if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
            raise TeranInputError(f"{name}: a feature or a box is no finite number")
        if (boxes > np.tile(size, 2) + 1).any() or (boxes < -1).any():
            raise TeranInputError(f"{name}: a box lies outside of {size[0]} x {size[1]} pixels")
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise TeranInputError(f"{name}: a box ends before it begins")
        scale = np.array([*size, *size], np.float32)
        return cls(features, np.divide(boxes, scale, dtype=np.float32).clip(0, 1))


class RegionSource(Protocol):
    """Regions by image id. This is all that other formats need to offer."""

    def ids(self) -> list[str]:
        """Of all images, in the order that is fastest to read."""

    def fingerprint(self) -> str:
        """What changes when a file does, or its place."""

    def read(self, image: str) -> Regions:
        """Read an image.

        Raises:
            TeranInputError: it is not there, or damaged.
        """


def fingerprint_of(files: Iterable[Path], more: str = "") -> str:
    """Tell files by their places, sizes and times, and whatever else counts."""
    digest = sha256(more.encode())
    for file in files:
        state = file.stat()
        digest.update(f"{file.absolute()} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
