"""Captions and splits, in each of the forms they come in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teran.errors import TeranInputError
from teran.evaluation.data import Split, read_split
from teran.evaluation.data.captions import CAPTIONS_FILE, write_splits


def said(image: int, count: int = 5) -> list[str]:
    return [f"image {image}, sentence {i}" for i in range(count)]


def karpathy(*, counts: tuple[int, ...] = (5, 5, 7, 5)) -> dict[str, Any]:
    splits = ("train", "test", "test", "val")
    return {
        "images": [
            {
                "cocoid": 100 - i,
                "split": split,
                "sentences": [{"raw": one} for one in said(i, count)],
            }
            for i, (split, count) in enumerate(zip(splits, counts, strict=True))
        ]
    }


@pytest.mark.parametrize(
    ("dataset", "file", "ids"),
    [("coco", "dataset_coco.json", ["99", "98"]), ("f30k", "dataset_flickr30k.json", ["1", "2"])],
)
def test_karpathys_file(tmp_path: Path, dataset: str, file: str, ids: list[str]) -> None:
    """Flickr30k's images are called by their places; more captions than five are left out."""
    (tmp_path / file).write_text(json.dumps(karpathy()))
    split = read_split(tmp_path, dataset, "test")
    assert split.image_ids == ids
    assert split.captions == [*said(1), *said(2)]
    assert split.owner.tolist() == [0] * 5 + [1] * 5
    assert read_split(tmp_path, dataset, "val").captions == said(3)
    with pytest.raises(TeranInputError, match="no images in its split 'restval'"):
        read_split(tmp_path, dataset, "restval")


def test_an_image_with_fewer_captions_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataset_coco.json").write_text(json.dumps(karpathy(counts=(5, 5, 4, 5))))
    with pytest.raises(TeranInputError, match=r"1 images .* have not 5 captions; image 98 has 4"):
        read_split(tmp_path, "coco", "test")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's files with the authors' lists, of which ids are in no order."""
    folder = tmp_path / "annotations"
    folder.mkdir()
    described: dict[str, list[int]] = {"train": [7], "val": [3, 9, 5]}
    for name, images in described.items():
        annotations = [
            {"id": 1000 * image + i, "image_id": image, "caption": said(image)[i]}
            for i in range(5)
            for image in images
        ]
        content = {"annotations": annotations, "images": []}
        (folder / f"captions_{name}2014.json").write_text(json.dumps(content))
    listed: dict[str, list[int]] = {"train": [7], "test": [9, 3], "dev": [5]}
    for name, images in listed.items():
        ids = [1000 * image + i for image in images for i in range(5)]
        np.save(folder / f"coco_{name}_ids.npy", np.array(ids))
    return tmp_path


def test_cocos_files_with_the_authors_lists(coco: Path) -> None:
    split = read_split(coco, "coco", "test")
    assert split.image_ids == ["9", "3"]
    assert split.captions == [*said(9), *said(3)]
    assert read_split(coco, "coco", "val").image_ids == ["5"]
    assert read_split(coco, "coco", "train").captions == said(7)


def test_the_authors_lists_come_before_karpathys_file(coco: Path) -> None:
    """As their validation split is a part of his."""
    (coco / "dataset_coco.json").write_text(json.dumps(karpathy()))
    assert read_split(coco, "coco", "test").image_ids == ["9", "3"]
    for damage in ("{}", '{"annotations": [{"id": 1}]}'):
        (coco / "annotations" / "captions_val2014.json").write_text(damage)
        with pytest.raises(TeranInputError, match=r"captions_val2014\.json is not COCO's"):
            read_split(coco, "coco", "test")


def test_ids_that_are_nowhere_are_named(coco: Path) -> None:
    np.save(coco / "annotations" / "coco_test_ids.npy", np.array([9000, 1, 2]))
    with pytest.raises(TeranInputError, match=r"2 of 3 ids .* the first is 1"):
        read_split(coco, "coco", "test")


@pytest.mark.parametrize("damage", ["not json", "[]", '{"images": [{}]}', '{"images": 3}', "{}"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "dataset_coco.json").write_text(damage)
    with pytest.raises(TeranInputError, match=r"dataset_coco\.json"):
        read_split(tmp_path, "coco", "test")


def test_what_is_not_there_is_named(tmp_path: Path, coco: Path) -> None:
    with pytest.raises(TeranInputError, match=r"neither dataset_coco\.json nor coco_restval_ids"):
        read_split(coco, "coco", "restval")
    with pytest.raises(TeranInputError, match=r"neither dataset_flickr30k\.json"):
        read_split(tmp_path, "f30k", "test")
    with pytest.raises(TeranInputError, match="'cats' is none of the data sets coco, f30k"):
        read_split(tmp_path, "cats", "test")
    (coco / "annotations" / "captions_val2014.json").unlink()
    with pytest.raises(TeranInputError, match=r"has no captions_val2014\.json"):
        read_split(coco, "coco", "test")


def test_our_own_file_says_the_same(coco: Path, tmp_path: Path) -> None:
    splits = [read_split(coco, "coco", name) for name in ("test", "val")]
    packed = tmp_path / "packed"
    packed.mkdir()
    write_splits(packed / CAPTIONS_FILE, "coco", splits)
    for split in splits:
        again = read_split(packed, "coco", split.name)
        assert (again.image_ids, again.captions) == (split.image_ids, split.captions)
    with pytest.raises(TeranInputError, match="is of coco with the splits test, val, not of f30k"):
        read_split(packed, "f30k", "test")


def test_a_part_of_a_split() -> None:
    split = Split.of("coco", "test", [(str(i), said(i)) for i in range(4)])
    part = split.part(1, 2)
    assert part.image_ids == ["1", "2"]
    assert part.captions == [*said(1), *said(2)]
    assert part.owner.tolist() == [0] * 5 + [1] * 5
