"""A photo's bytes to its pixels, as they are meant to be seen. Nothing of them is trusted."""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from teran.errors import TeranPhotoError

FORMATS = ("JPEG", "PNG", "WEBP")
LEAST_SIDE = 16
"""Pixels."""
LARGEST_SIDE = 16_384
MOST_PIXELS = 50_000_000
"""Refused before they are decoded: a few kilobytes can say that they are billions."""
MOST_ELONGATED = 20
"""Times that one side may be the other."""
_SCAN, _MOST_SCANS = b"\xff\xda", 100
"""Of a JPEG. Each goes over all pixels, and takes a hundred bytes; usual ones have about ten."""
_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def decode(photo: bytes) -> npt.NDArray[np.uint8]:
    """Decode, turn as EXIF says, and bring to red, green and blue; transparency is left out.

    Returns:
        (H, W, 3)

    Raises:
        TeranPhotoError: it is no photo of a known format, damaged, or of a size that is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of our own limit there is an error
            image = Image.open(io.BytesIO(photo), formats=FORMATS)
            check_size(*image.size)
            if image.format == "JPEG" and photo.count(_SCAN) > _MOST_SCANS:
                raise TeranPhotoError(f"the JPEG has more than {_MOST_SCANS} scans")
            image.load()
            return np.asarray(_in_rgb(ImageOps.exif_transpose(image)))
    except TeranPhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise TeranPhotoError(f"the photo has more than {MOST_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise TeranPhotoError(f"not a photo in {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise whatever they like
        raise TeranPhotoError(f"the photo is damaged: {error}") from error


def check_size(width: int, height: int) -> None:
    """Refuse a photo for its size.

    Raises:
        TeranPhotoError: it has too few pixels, too many, or is too narrow.
    """
    size = f"the photo has {width} x {height} pixels"
    if min(width, height) < LEAST_SIDE:
        raise TeranPhotoError(f"{size}; at least {LEAST_SIDE} each way are needed")
    if max(width, height) > LARGEST_SIDE:
        raise TeranPhotoError(f"{size}; no more than {LARGEST_SIDE} each way are taken")
    if width * height > MOST_PIXELS:
        raise TeranPhotoError(f"{size}; no more than {MOST_PIXELS:,} are taken")
    if max(width, height) > MOST_ELONGATED * min(width, height):
        raise TeranPhotoError(f"{size}: one side is more than {MOST_ELONGATED} times the other")


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _16_BIT:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
