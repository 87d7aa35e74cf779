"""Photos as callers have them: files, bytes, or pictures of Pillow's."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import ExifTags, Image, ImageOps

from teran.contract import DIGEST, PHOTO_SUFFIXES
from teran.errors import TeranInputError, TeranPhotoError
from teran_client.images import PICTURES, exif_of, upright_size

_OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
"""Kinds of pixels that the format has."""
_EXIF_DATES = "%Y:%m:%d %H:%M:%S"


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo, which the server finds the regions of.

    Attributes:
        source: a file, which is read when it is sent, or what is in one: JPEG, PNG or WebP.
        name: what error messages and results call it.
    """

    source: Path | bytes
    name: str = "photo"

    @classmethod
    def of(cls, source: object, name: str = "photo") -> "Photo":
        """A photo of whatever holds one; files are called by their names.

        Raises:
            TeranInputError: it holds none.
        """
        if isinstance(source, Photo):
            return source
        if isinstance(source, str | Path):
            path = Path(source)
            with suppress(OSError):  # no name that a file can have
                if path.is_file():
                    return cls(path, path.name)
            raise TeranInputError(f"there is no photo {str(source)[:200]!r}")
        if isinstance(source, bytes):
            return cls(source, name)
        if isinstance(source, Image.Image):
            upright, file = ImageOps.exif_transpose(source), io.BytesIO()
            if upright.mode == "I":  # 16 bits in 32
                values = np.asarray(upright).clip(0, 65535)
                upright = Image.fromarray(values.astype(np.uint16))
            if upright.mode not in _OF_PNG:
                upright = upright.convert("RGB")
            upright.save(file, "PNG", compress_level=1)
            return cls(file.getvalue(), name)
        raise TeranInputError(
            f"{name} is {type(source).__name__}, expected a photo: a path, bytes or a Pillow image"
        )

    def __len__(self) -> int:
        """Photos are all of a length: how many regions they have nobody knows yet."""
        return 1

    def read(self) -> bytes:
        """What is in the file.

        Raises:
            TeranPhotoError: it can't be read, or there is nothing in it.
        """
        try:
            data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            raise TeranPhotoError(f"{self.name} can't be read: {error}") from error
        if not data:
            raise TeranPhotoError(f"{self.name} is empty")
        return data


PhotoLike = Photo | Path | bytes | Image.Image
"""A photo, or what holds one."""


def is_photo(item: object) -> TypeGuard[PhotoLike]:
    """Whether something holds a photo: a string does not, as it may be a sentence."""
    return isinstance(item, Photo | Path | bytes | Image.Image)


def find_photos(folder: Path, *, recursive: bool = False, wanted: str = "photos") -> list[Path]:
    """The photos in a directory, by their names.

    Args:
        folder: the directory.
        recursive: whether to look in those below, too.
        wanted: what the error says there is none of.

    Raises:
        TeranInputError: there are none.
    """
    every = folder.rglob("*") if recursive else folder.glob("*")
    found = sorted(one for one in every if one.suffix.lower() in PHOTO_SUFFIXES and one.is_file())
    if not found:
        raise TeranInputError(f"{folder} holds no {wanted} ({', '.join(PHOTO_SUFFIXES)})")
    return found


def photos_in(folder: Path, *, recursive: bool = False) -> Iterator[Photo]:
    """The photos in a directory, called by their paths in it.

    Raises:
        TeranInputError: there are none.
    """
    for path in find_photos(folder, recursive=recursive):
        yield Photo(path, path.relative_to(folder).as_posix())


def describe(data: bytes) -> dict[str, Any]:
    """What searches can filter photos by: width, height, when it was taken, and its digest.

    What Pillow can't read the server will refuse, with the reason.
    """
    known: dict[str, Any] = {DIGEST: hashlib.sha256(data).hexdigest()}
    size = upright_size(io.BytesIO(data))
    if size is None:
        return known
    known["width"], known["height"] = size
    with Image.open(io.BytesIO(data), formats=PICTURES) as image:
        exif = exif_of(image)
    details = exif.get_ifd(ExifTags.IFD.Exif)
    text = details.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    with suppress(ValueError):  # there is none, or it is none
        known["taken"] = datetime.strptime(str(text), _EXIF_DATES).isoformat()
    return known
