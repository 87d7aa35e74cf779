"""Photos as people have them, and what is none."""

import io
import struct
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from teran.detector.decode import FORMATS, decode
from teran.errors import TeranInputError

SIZE = (40, 30)


def picture() -> Image.Image:
    """Red at the left, blue at the right, brighter downwards."""
    x, y = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
    values = np.stack([(1 - x) * 255, y * 255, x * 255], axis=-1)
    return Image.fromarray(values.round().astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    lossless: dict[str, dict[str, int]] = {
        "PNG": {},
        "WEBP": {"lossless": 1},
        "JPEG": {"quality": 98, "subsampling": 0},
    }
    pixels = decode(encoded(picture(), kind, **lossless[kind]))
    assert pixels.shape == (30, 40, 3)
    difference = np.abs(pixels.astype(int) - np.asarray(picture()).astype(int))
    assert difference.max() <= (6 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_kind_of_pixels(mode: str) -> None:
    grey = np.asarray(picture().convert("L"))
    if mode == "I;16":
        photo = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    else:
        photo = encoded(picture().convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    pixels = decode(photo).astype(int)
    assert pixels.shape == (30, 40, 3)
    if mode in ("L", "LA", "I;16"):
        assert (pixels == grey[:, :, None]).all()
    if mode == "RGBA":
        assert (pixels == np.asarray(picture())).all()
    if mode in ("P", "CMYK"):
        assert np.abs(pixels - np.asarray(picture()).astype(int)).mean() < 25


@pytest.mark.parametrize("turn", range(1, 9))
def test_photos_are_turned_as_exif_says(turn: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = picture().transpose(undo[turn]) if turn in undo else picture()
    assert (decode(encoded(stored, "PNG", exif=exif)) == np.asarray(picture())).all()


def png_of(width: int, height: int) -> bytes:
    """A few bytes that say they are so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (png_of(8_000, 8_000), "8000 x 8000 pixels; no more than 50,000,000"),
        (png_of(100_000, 100_000), "more than 50,000,000 pixels"),
        (png_of(20_000, 100), "no more than 16384 each way"),
        (png_of(1, 1), "1 x 1 pixels; at least 16"),
        (png_of(16_000, 200), "more than 20 times the other"),
        (png_of(640, 480), "damaged"),
        (b"", "not a photo in JPEG, PNG, WEBP"),
        (b"GIF89a" + bytes(100), "not a photo in JPEG, PNG, WEBP"),
        (encoded(picture(), "GIF"), "not a photo in JPEG, PNG, WEBP"),
        (encoded(picture(), "JPEG")[:-200], "damaged"),
    ],
    ids=range(10),
)
def test_what_is_refused_and_why(photo: bytes, reason: str) -> None:
    with pytest.raises(TeranInputError, match=reason):
        decode(photo)


def test_a_jpeg_of_endless_scans_is_refused_before_it_is_decoded() -> None:
    """Each takes a hundred bytes, and goes over all pixels."""
    photo = encoded(picture(), "JPEG", progressive=True)
    assert decode(photo).shape == (30, 40, 3)
    last = photo.rindex(b"\xff\xda")
    scan = photo[last:-2]
    with pytest.raises(TeranInputError, match="more than 100 scans"):
        decode(photo[:-2] + 200 * scan + photo[-2:])


@given(
    kind=st.sampled_from(FORMATS),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    cut=st.floats(0, 1),
)
def test_garbled_photos_end_in_pixels_or_an_error(
    kind: str, places: list[tuple[float, int]], cut: float
) -> None:
    data = bytearray(encoded(picture(), kind))
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    with suppress(TeranInputError):
        assert decode(bytes(data[: int(cut * len(data)) + 1])).ndim == 3
