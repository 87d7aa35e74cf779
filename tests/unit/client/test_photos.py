"""Photos as callers have them, and what is known of them before they are sent."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teran_client import Entry, ImageRegions, Photo, TeranInputError
from teran_client.photos import describe, find_photos, photos_in

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)


def encoded(kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def test_a_photo_of_whatever_holds_one(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    for source, name in ((path, "a.png"), (str(path), "a.png"), (encoded(), "given")):
        photo = Photo.of(source, "given")
        assert (photo.name, photo.read()) == (name, encoded())
    picture = Photo.of(Image.fromarray(PIXELS))
    with Image.open(io.BytesIO(picture.read())) as image:
        assert (np.asarray(image) == PIXELS).all()
    cmyk = Photo.of(Image.fromarray(PIXELS).convert("CMYK"))
    with Image.open(io.BytesIO(cmyk.read())) as image:
        assert image.mode == "RGB"


def test_pictures_stay_upright_and_bright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded("JPEG", exif=exif))) as lying:
        photo = Photo.of(lying)
    with Image.open(io.BytesIO(photo.read())) as image:
        assert image.size == (30, 40)
    grey = np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.int32)
    with Image.open(io.BytesIO(Photo.of(Image.fromarray(grey)).read())) as image:
        assert np.abs(np.asarray(image).astype(int) - grey).max() <= 1


def test_what_holds_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeranInputError, match="there is no photo"):
        Photo.of(tmp_path / "absent.jpg")
    with pytest.raises(TeranInputError, match="it is list, expected a photo"):
        Photo.of([], "it")
    with pytest.raises(TeranInputError, match="it is empty"):
        Photo.of(b"", "it").read()
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"x")
    photo = Photo.of(gone)
    gone.unlink()
    with pytest.raises(TeranInputError, match=r"gone\.png can't be read"):
        photo.read()
    with pytest.raises(TeranInputError, match="has no name; pass Entry"):
        Entry.of(encoded(), "item 0")


def test_what_searches_can_filter_by() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2020:02:29 23:59:59"
    data = encoded("JPEG", exif=exif)
    assert describe(data) == {
        "width": 30, "height": 40, "taken": "2020-02-29T23:59:59",
        "sha256": hashlib.sha256(data).hexdigest(),
    }  # fmt: skip
    exif.get_ifd(0x8769)[0x9003] = "yesterday"
    assert "taken" not in describe(encoded("JPEG", exif=exif))
    assert list(describe(b"no photo")) == ["sha256"]


def test_photos_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("b.JPG", "a.webp", "below/c.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [one.name for one in photos_in(tmp_path)] == ["a.webp", "b.JPG"]
    assert [one.name for one in photos_in(tmp_path, recursive=True)] == [
        "a.webp", "b.JPG", "below/c.png",
    ]  # fmt: skip
    with pytest.raises(TeranInputError, match="holds no photos"):
        find_photos(tmp_path / "absent")


def test_the_size_of_an_image_lies_beside_its_features(tmp_path: Path) -> None:
    features = tmp_path / "42.npz"
    np.savez(features, feat=np.ones((2, 5), np.float32))
    np.save(tmp_path / "42.npy", np.array([[0, 0, 20, 15], [0, 0, 40, 30]], np.float32))
    with pytest.raises(TeranInputError, match="no picture beside it, nor does sizes"):
        ImageRegions.from_files(features)
    (tmp_path / "42.jpg").write_bytes(encoded("JPEG"))
    assert ImageRegions.from_files(features).boxes[0].tolist() == [0, 0, 0.5, 0.5]
    (tmp_path / "sizes.json").write_text('{"42": [80, 60]}')
    assert ImageRegions.from_files(features).boxes[0].tolist() == [0, 0, 0.25, 0.25]
    assert ImageRegions.from_files(features, size=(40, 30)).boxes[0].tolist() == [0, 0, 0.5, 0.5]
