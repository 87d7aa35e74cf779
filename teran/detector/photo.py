"""A photo as the network takes it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from teran.detector.boxes import Floats
from teran.detector.config import DetectorConfig
from teran.detector.decode import check_size

MEAN = (102.9801, 115.9465, 122.7717)
"""Of blue, green and red."""


def scale_of(size: tuple[int, int], config: DetectorConfig) -> float:
    """What the sides of a photo are multiplied by, from its height and width."""
    short, long = sorted(size)
    scale = config.min_side / short
    if round(scale * long) > config.max_side:
        scale = config.max_side / long
    return scale


def checked_size(size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a photo, as somebody says they are.

    Raises:
        TeranPhotoError: no photo is taken that has them.
    """
    height, width = map(int, size)
    check_size(width, height)
    return height, width


def input_size(size: tuple[int, int], config: DetectorConfig) -> tuple[int, int]:
    """Height and width of a photo as the network takes it, of its own."""
    scale = scale_of(size, config)
    return round(size[0] * scale), round(size[1] * scale)


def map_side(pixels: int) -> int:
    """Cells of the feature map along so many pixels."""
    half = -(-pixels // 2)
    eighth = -(-(half // 2) // 2)
    return -(-eighth // 2)


def prepared(photo: npt.NDArray[np.uint8], scale: float) -> Floats:
    """Blue, green and red less their means, resized.

    Sampled between pixels at `(i + 0.5) / scale - 0.5`: by the scale, as Caffe's code had OpenCV do
    it, and not by the ratio of the sizes, which are rounded.

    Args:
        photo: (H, W, 3), red first.
        scale: of its sides.

    Returns:
        (3, h, w)
    """
    rows, below, down = _places(photo.shape[0], scale)
    columns, right, across = _places(photo.shape[1], scale)
    # Rows first: what is not sampled of a large photo never becomes floating point.
    lines, lower = (
        photo[some].transpose(2, 0, 1)[::-1].astype(np.float32, order="C") for some in (rows, below)
    )
    lines *= 1 - down[:, None]
    lower *= down[:, None]
    lines += lower
    pixels = np.take(lines, columns, axis=2)
    pixels *= 1 - across
    second = np.take(lines, right, axis=2)
    second *= across
    pixels += second
    pixels -= np.array(MEAN, np.float32)[:, None, None]
    return pixels


def padded(pixels: Floats, height: int, width: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Add zeros at the right and below.

    Args:
        pixels: (3, h, w)
        height: of the result.
        width: likewise.

    Returns:
        (3, height, width), and which of them are inside the photo (height, width).
    """
    around = ((0, height - pixels.shape[1]), (0, width - pixels.shape[2]))
    inside = np.pad(np.ones(pixels.shape[1:], np.bool_), around)
    return np.pad(pixels, ((0, 0), *around)), inside


def _places(size: int, scale: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], Floats]:
    """Between which two pixels every sample lies, and the weight of the second."""
    places = (np.arange(round(size * scale)) + 0.5) / scale - 0.5
    places = places.clip(0, size - 1)
    low = places.astype(np.intp)
    return low, np.minimum(low + 1, size - 1), (places - low).astype(np.float32)
