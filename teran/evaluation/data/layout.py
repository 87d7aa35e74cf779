"""Regions as the authors keep them: two small files an image."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError
from teran.evaluation.data.regions import Regions, fingerprint_of
from teran.evaluation.data.sizes import Size

FEATURES, BOXES = "bu_att", "bu_box"


class LayoutSource:
    """`bu_att/<id>.npz` with `feat` (R, F), and `bu_box/<id>.npy` (R, 4) in pixels."""

    def __init__(self, directory: Path, sizes: Mapping[str, Size]) -> None:
        """Take a directory that holds both folders, and the sizes of the images in it."""
        self._directory, self._sizes = directory, sizes

    def ids(self) -> list[str]:
        """Of all images that have features, numbers in their order."""
        names = [path.stem for path in (self._directory / FEATURES).glob("*.npz")]
        return sorted(names, key=lambda name: (len(name), name))

    def fingerprint(self) -> str:
        """What changes when a file does, or its place."""
        folders = (self._directory / FEATURES, self._directory / BOXES)
        files = [file for folder in folders for file in sorted(folder.glob("*.np[yz]"))]
        return fingerprint_of(files, json.dumps(self._sizes, sort_keys=True))

    def read(self, image: str) -> Regions:
        """Read an image.

        Raises:
            TeranInputError: a file of it is missing or damaged, or its size is not known.
        """
        features = self._directory / FEATURES / f"{image}.npz"
        boxes = self._directory / BOXES / f"{image}.npy"
        if image not in self._sizes:
            raise TeranInputError(f"image {image}: no file says how wide and high it is")
        return Regions.from_pixels(
            _load(features, "feat"), _load(boxes), self._sizes[image], f"image {image}"
        )


def _load(path: Path, key: str | None = None) -> npt.NDArray[Any]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray) is bool(key):
            raise ValueError("it holds something else")
        return np.asarray(loaded[key] if key else loaded)
    except FileNotFoundError:
        raise TeranInputError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TeranInputError(f"can't read {path}: {error}") from error
