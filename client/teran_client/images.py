"""An image as TERAN takes it: region features and boxes, checked before anything is sent."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from teran.contract import PHOTO_SUFFIXES
from teran.errors import TeranInputError

Floats = npt.NDArray[np.float32]

PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""Formats that are looked into; others of Pillow's may start other programs."""
_FIRST_ON_ITS_SIDE = 5
"""Of EXIF's orientations."""
_SLACK = 1e-3
"""How far, as a fraction of the image, a box may reach over the edge: detectors round."""


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The regions a detector found in one image.

    Attributes:
        features: (R, F) float32.
        boxes: (R, 4) float32, x1 y1 x2 y2 as fractions of the image's width and height.
        name: what error messages and results call the image.
    """

    features: Floats
    boxes: Floats
    name: str = "image"

    def __post_init__(self) -> None:
        """Check and convert.

        Raises:
            TeranInputError: a shape, type or value can't be right; the message names it.
        """
        features = _as_floats(self.features, f"{self.name}: features")
        boxes = _as_floats(self.boxes, f"{self.name}: boxes")
        if features.ndim != 2 or 0 in features.shape:
            raise TeranInputError(
                f"{self.name}: features have shape {features.shape}, expected (regions, dims)"
            )
        if boxes.shape != (len(features), 4):
            raise TeranInputError(
                f"{self.name}: boxes have shape {boxes.shape}, expected ({len(features)}, 4)"
            )
        _check_boxes(boxes, self.name)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "boxes", boxes.clip(0.0, 1.0))

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def from_pixels(
        cls,
        features: npt.ArrayLike,
        pixel_boxes: npt.ArrayLike,
        size: tuple[float, float],
        name: str = "image",
    ) -> "ImageRegions":
        """Make one from boxes in pixels and the image's (width, height)."""
        width, height = size
        if not (width > 0 and height > 0):
            raise TeranInputError(f"{name}: the image size {width} x {height} is not positive")
        boxes = _as_floats(pixel_boxes, f"{name}: boxes")
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise TeranInputError(f"{name}: boxes have shape {boxes.shape}, expected (regions, 4)")
        scale = np.array([width, height, width, height], np.float32)
        return cls(np.asarray(features), boxes / scale, name)

    @classmethod
    def from_files(
        cls,
        features: str | Path,
        boxes: str | Path | None = None,
        size: tuple[float, float] | None = None,
        *,
        fallback: tuple[float, float] | None = None,
    ) -> "ImageRegions":
        """Read the authors' files.

        Args:
            features: `<id>.npz` with the key `feat`.
            boxes: `<id>.npy` with pixel boxes; by default the one beside `features`.
            size: the image's (width, height); by default the key `size` of the `.npz`, what
                `sizes.json` beside it says, or that of the picture `<id>.jpg`, `.png` or `.webp`
                beside it.
            fallback: the size of an image that none of these tells.

        Raises:
            TeranInputError: a file is missing, damaged, or holds something else.
        """
        path = Path(features)
        try:
            with np.load(path) as archive:
                if "feat" not in archive:
                    raise TeranInputError(f"{path} has no array 'feat'")
                values = archive["feat"]
                if size is None and "size" in archive:
                    width, height = archive["size"].tolist()
                    size = (width, height)
            pixel_boxes = np.load(boxes or path.with_suffix(".npy"))
        except TeranInputError:
            raise
        except Exception as error:  # numpy raises many kinds for damaged files
            raise TeranInputError(f"{path} can't be read: {error}") from error
        size = size or read_sizes(path.parent).get(path.stem) or _size_of_picture(path) or fallback
        if size is None:
            raise TeranInputError(
                f"{path}: the image's size is not known: it has no picture beside it, nor does "
                "sizes.json there say; pass it (size=, or --size 640x480)"
            )
        return cls.from_pixels(values, pixel_boxes, size, path.stem)


def read_directory(
    directory: str | Path, size: tuple[float, float] | None = None
) -> Iterator[ImageRegions]:
    """Read every `<id>.npz` + `<id>.npy` of a directory, in the order of their names.

    Sizes come from `sizes.json` ({id: [width, height]}), from the files or the pictures beside
    them, or are `size` for all.

    Raises:
        TeranInputError: there is no image, or one can't be read.
    """
    folder = Path(directory)
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise TeranInputError(f"{folder} holds no .npz files")
    sizes = read_sizes(folder)
    for path in paths:
        yield ImageRegions.from_files(path, size=sizes.get(path.stem), fallback=size)


def read_sizes(folder: Path) -> dict[str, tuple[float, float]]:
    """Read `sizes.json`, where there is one.

    Raises:
        TeranInputError: it can't be read.
    """
    path = folder / "sizes.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: (float(w), float(h)) for name, (w, h) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TeranInputError(f"{path} can't be read: {error}") from error


def picture_beside(features: Path) -> Path | None:
    """The picture that an image's features are of, where it lies beside them."""
    pictures = (features.with_suffix(suffix) for suffix in PHOTO_SUFFIXES)
    return next((one for one in pictures if one.is_file()), None)


def _size_of_picture(features: Path) -> tuple[float, float] | None:
    picture = picture_beside(features)
    return upright_size(picture) if picture else None


def exif_of(image: Image.Image) -> Image.Exif:
    """What a picture says of itself. Of a PNG only what comes before its pixels: no decoding."""
    is_late = image.format == "PNG" and "exif" not in image.info
    return Image.Exif() if is_late else image.getexif()


def upright_size(picture: Path | BinaryIO) -> tuple[int, int] | None:
    """Width and height of a picture as it is meant to be seen; None of what is none."""
    try:
        with Image.open(picture, formats=PICTURES) as image:
            width, height = image.size
            lies = exif_of(image).get(ExifTags.Base.Orientation, 1) >= _FIRST_ON_ITS_SIDE
    except Exception:  # decoders raise whatever they like
        return None
    return (height, width) if lies else (width, height)


def _as_floats(values: npt.ArrayLike, what: str) -> Floats:
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TeranInputError(f"{what} have dtype {array.dtype}, expected numbers")
    result = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(result).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(result))[0])
        raise TeranInputError(f"{what} hold {result[where]} at {where}")
    return result


def _check_boxes(boxes: Floats, name: str) -> None:
    outside = ((boxes < -_SLACK) | (boxes > 1 + _SLACK)).any(axis=1)
    empty = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    for bad, problem in ((outside, "lies outside the image"), (empty, "ends before it starts")):
        if bad.any():
            row = int(bad.argmax())
            values = ", ".join(f"{value:.3f}" for value in boxes[row])
            raise TeranInputError(
                f"{name}: box {row} ({values}) {problem}; boxes are x1 y1 x2 y2 as fractions of "
                "the image's width and height"
            )
