"""Images are checked before anything is sent; the authors' files are read."""

import json
from pathlib import Path

import numpy as np
import pytest
from teran_client import ImageRegions, TeranInputError
from teran_client.images import read_directory

BOX = [[0.1, 0.2, 0.5, 0.6]]


@pytest.mark.parametrize(
    ("features", "boxes", "reason"),
    [
        (np.zeros((2, 3)), BOX, r"boxes have shape \(1, 4\), expected \(2, 4\)"),
        (np.zeros(3), BOX, r"features have shape \(3,\)"),
        (np.zeros((0, 3)), np.zeros((0, 4)), r"features have shape \(0, 3\)"),
        ([[1.0, np.nan]], BOX, r"hold nan at \(0, 1\)"),
        ([[1.0, np.inf]], BOX, r"hold inf at \(0, 1\)"),
        ([["a", "b"]], BOX, "dtype <U1"),
        ([[1.0]], [[0.1, 0.2, 1.5, 0.6]], "box 0 .* outside the image"),
        ([[1.0]], [[10, 20, 50, 60]], "box 0 .* outside the image"),
        ([[1.0]], [[0.5, 0.2, 0.1, 0.6]], "box 0 .* ends before it starts"),
        ([[1.0]], [[0.5, 0.2, np.nan, 0.6]], "boxes hold nan"),
    ],
)
def test_unusable_images_are_named(features: object, boxes: object, reason: str) -> None:
    with pytest.raises(TeranInputError, match=f"photo.*{reason}"):
        ImageRegions(features, boxes, "photo")  # type: ignore[arg-type]


def test_values_are_converted() -> None:
    image = ImageRegions(np.ones((1, 3), np.float16), np.array([[0, 0, 1.0005, 1]]))
    assert image.features.dtype == image.boxes.dtype == np.float32
    assert image.boxes.max() == 1.0


def write_image(folder: Path, name: str, count: int = 2) -> None:
    np.savez(folder / f"{name}.npz", feat=np.ones((count, 3), np.float32))
    np.save(folder / f"{name}.npy", np.tile(np.array([64, 48, 320, 240], np.float32), (count, 1)))


def test_authors_files(tmp_path: Path) -> None:
    write_image(tmp_path, "42")
    image = ImageRegions.from_files(tmp_path / "42.npz", size=(640, 480))
    assert image.name == "42"
    np.testing.assert_allclose(image.boxes, [[0.1, 0.1, 0.5, 0.5]] * 2)
    with pytest.raises(TeranInputError, match="size is not known"):
        ImageRegions.from_files(tmp_path / "42.npz")


def test_directories(tmp_path: Path) -> None:
    with pytest.raises(TeranInputError, match=r"no \.npz"):
        list(read_directory(tmp_path))
    write_image(tmp_path, "b")
    write_image(tmp_path, "a", 3)
    (tmp_path / "sizes.json").write_text(json.dumps({"a": [640, 480], "b": [320, 240]}))
    names = {image.name: len(image) for image in read_directory(tmp_path)}
    assert list(names.items()) == [("a", 3), ("b", 2)]


@pytest.mark.parametrize("damage", ["cut", "text", "key", "boxes"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    write_image(tmp_path, "42")
    path = tmp_path / "42.npz"
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:100])
        case "text":
            path.write_text("nothing")
        case "key":
            np.savez(path, other=np.ones(3))
        case "boxes":
            (tmp_path / "42.npy").unlink()
    with pytest.raises(TeranInputError, match=r"42\.np"):
        ImageRegions.from_files(path, size=(640, 480))
