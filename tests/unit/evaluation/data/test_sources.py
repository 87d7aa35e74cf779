"""Regions of images, in each of the forms they come in, whole and damaged."""

import base64
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from teran.errors import TeranInputError
from teran.evaluation.data import Regions, open_regions
from teran.evaluation.data.packed import PACK_FILE, PackedSource, pack
from teran.evaluation.data.sizes import read_sizes
from tests.conftest import REFERENCE

SIZES = {"1": (100, 50), "2": (64, 64), "10": (30, 90), "11": (200, 200)}


def made(image: str, regions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Features and boxes in pixels."""
    random = np.random.default_rng(int(image))
    width, height = SIZES[image]
    corners = np.sort(random.random((regions, 2, 2)), axis=1).reshape(regions, 4)
    boxes = corners * [width, height, width, height]
    return random.random((regions, 6)).astype(np.float32), boxes.astype(np.float32)


def expected(image: str) -> Regions:
    width, height = SIZES[image]
    features, boxes = made(image)
    scale = np.array([width, height, width, height], np.float32)
    return Regions(features, (boxes / scale).astype(np.float32))


def assert_same(found: Regions, wanted: Regions) -> None:
    assert (found.features == wanted.features).all()
    assert (found.boxes == wanted.boxes).all()
    assert found.boxes.dtype == found.features.dtype == np.float32


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """The authors' layout, sizes in a list of Flickr30k's form and in an object."""
    root = tmp_path / "data"
    for folder in ("bu_att", "bu_box"):
        (root / "features_36" / folder).mkdir(parents=True)
    for image in SIZES:
        features, boxes = made(image)
        np.savez(root / "features_36" / "bu_att" / f"{image}.npz", feat=features)
        np.save(root / "features_36" / "bu_box" / f"{image}.npy", boxes)
    (root / "sizes.json").write_text(json.dumps(SIZES))
    return root


def test_the_authors_layout(layout: Path) -> None:
    source = open_regions(layout)
    assert source.ids() == ["1", "2", "10", "11"]
    for image in SIZES:
        assert_same(source.read(image), expected(image))


def test_damaged_images_are_named(layout: Path) -> None:
    features, boxes = (layout / "features_36" / name for name in ("bu_att", "bu_box"))
    whole = (features / "1.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (features / "1.npz").write_bytes(whole[:cut])
        with pytest.raises(TeranInputError, match=r"can't read .*1\.npz"):
            open_regions(layout).read("1")
    np.savez(features / "1.npz", other=1)
    with pytest.raises(TeranInputError, match=r"can't read .*1\.npz.*feat"):
        open_regions(layout).read("1")
    np.save(boxes / "2.npy", np.zeros((2, 4)))
    with pytest.raises(TeranInputError, match=r"image 2: 3 regions, but boxes of the shape \(2, 4"):
        open_regions(layout).read("2")
    with (features / "1.npz").open("wb") as file:
        np.save(file, np.zeros((3, 6)))
    with pytest.raises(TeranInputError, match=r"can't read .*1\.npz: it holds something else"):
        open_regions(layout).read("1")
    np.save(boxes / "10.npy", np.tile([20.0, 0, 10, 5], (3, 1)))
    with pytest.raises(TeranInputError, match="image 10: a box ends before it begins"):
        open_regions(layout).read("10")
    np.save(boxes / "10.npy", np.full((3, 4), 5000.0))
    with pytest.raises(TeranInputError, match="image 10: a box lies outside of 30 x 90 pixels"):
        open_regions(layout).read("10")
    np.savez(features / "11.npz", feat=np.full((3, 6), np.nan))
    with pytest.raises(TeranInputError, match="image 11: a feature or a box is no finite number"):
        open_regions(layout).read("11")
    (boxes / "11.npy").unlink()
    with pytest.raises(TeranInputError, match=r"11\.npy is missing"):
        open_regions(layout).read("11")
    (layout / "sizes.json").unlink()
    with pytest.raises(TeranInputError, match="image 1: no file says how wide and high it is"):
        open_regions(layout).read("1")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must not be run",)


def test_sizes_are_read_without_running_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "sizes.pkl").write_bytes(pickle.dumps([(500, 333), (320, 200)], protocol=2))
    assert read_sizes(tmp_path) == {"0": (500, 333), "1": (320, 200)}
    for bad in (pickle.dumps(Evil()), b"", b"cos\nsystem\n", pickle.dumps([(1, 2, 3)])):
        (folder / "sizes.pkl").write_bytes(bad)
        with pytest.raises(TeranInputError, match=r"sizes\.pkl"):
            read_sizes(tmp_path)
    assert "run" not in capsys.readouterr().out


def encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def rows_of(image: str, *, columns: int) -> str:
    features, boxes = made(image)
    width, height = SIZES[image]
    name = f"COCO_val2014_{int(image):012d}"
    tail = [str(len(features)), encoded(boxes), encoded(features)]
    if columns == 6:
        return "\t".join([name, str(width), str(height), *tail]) + "\n"
    more = [encoded(np.zeros(3, np.int64))] * 4
    return "\t".join([name, str(height), str(width), *more, *tail]) + "\n"


@pytest.mark.parametrize("columns", [6, 10])
def test_tables(tmp_path: Path, columns: int) -> None:
    for name, images in (("a.tsv", ("11", "2")), ("b.tsv", ("1", "10"))):
        lines = [rows_of(image, columns=columns) for image in images]
        (tmp_path / name).write_text("".join(lines))
    source = open_regions(tmp_path)
    assert source.ids() == ["11", "2", "1", "10"]
    for image in SIZES:
        assert_same(source.read(image), expected(image))
    assert open_regions(tmp_path / "b.tsv").ids() == ["1", "10"]
    with pytest.raises(TeranInputError, match="image 5 is in none of the tables"):
        source.read("5")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    table = tmp_path / "a.tsv"
    line = rows_of("2", columns=6)
    table.write_text(line[: len(line) - 9])
    with pytest.raises(TeranInputError, match=r"a\.tsv: the line of image 2"):
        open_regions(table).read("2")
    table.write_text("1\t2\t3\n")
    with pytest.raises(TeranInputError, match=r"a\.tsv, line 1: 3 columns; known are 6 and 10"):
        open_regions(table)


def test_a_real_table() -> None:
    table = REFERENCE.parent / "data" / "caffe10" / "train2014_obj36.tsv"
    if not table.is_file():
        pytest.skip("no real features here")
    source = open_regions(table)
    assert len(source.ids()) == 10
    for image in source.ids():
        regions = source.read(image)
        assert regions.features.shape == (36, 2048)
        assert 0 <= regions.boxes.min() <= regions.boxes.max() <= 1


def test_packing_changes_nothing(layout: Path, tmp_path: Path) -> None:
    source = open_regions(layout)
    done: list[int] = []
    images = ["10", "1", "11"]
    assert pack(source, images, tmp_path / "packed", done.append) == []
    assert sum(done) == 3
    packed = open_regions(tmp_path / "packed")
    assert packed.ids() == images
    for image in images:
        assert_same(packed.read(image), expected(image))
    with pytest.raises(TeranInputError, match="image 2 is not in"):
        packed.read("2")


def test_packing_goes_on_where_it_was_cut_off(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teran.evaluation.data.packed._SHARD", 2)
    source, out = open_regions(layout), tmp_path / "packed"

    class Stops:
        def ids(self) -> list[str]:
            return source.ids()

        def fingerprint(self) -> str:
            return source.fingerprint()

        def read(self, image: str) -> Regions:
            if image == "10":
                raise KeyboardInterrupt
            return source.read(image)

    with pytest.raises(KeyboardInterrupt):
        pack(Stops(), list(SIZES), out)
    with pytest.raises(TeranInputError, match=PACK_FILE):
        PackedSource(out)
    before = (out / "00000.features.npy").stat().st_mtime_ns
    pack(source, list(SIZES), out)
    assert (out / "00000.features.npy").stat().st_mtime_ns == before
    for image in SIZES:
        assert_same(open_regions(out).read(image), expected(image))
    with pytest.raises(TeranInputError, match="was begun with other images"):
        pack(source, ["2", "1"], out)
    assert open_regions(out).ids() == list(SIZES), "what was packed stays"


def test_what_can_not_be_packed_is_named_and_may_come_later(layout: Path, tmp_path: Path) -> None:
    box, out = layout / "features_36" / "bu_box" / "2.npy", tmp_path / "packed"
    content = box.read_bytes()
    box.unlink()
    np.savez(layout / "features_36" / "bu_att" / "10.npz", feat=np.zeros((3, 7)))
    refused = pack(open_regions(layout), list(SIZES), out)
    assert [one.image for one in refused] == ["2", "10"]
    assert "2.npy is missing" in refused[0].reason
    assert "image 10 has features of 7 numbers, others have 6" in refused[1].reason
    assert open_regions(out).ids() == ["1", "11"]
    box.write_bytes(content)
    assert [one.image for one in pack(open_regions(layout), list(SIZES), out)] == ["10"]
    assert_same(open_regions(out).read("2"), expected("2"))


def test_damage_is_found(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    pack(open_regions(layout), list(SIZES), out)
    source = PackedSource(out)
    assert source.verify() == []
    fingerprint = source.fingerprint()
    for name in ("features", "boxes", "counts"):
        file = out / f"00000.{name}.npy"
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert PackedSource(out).verify() == [file.name]
        file.write_bytes(whole[:-4])
        assert PackedSource(out).verify() == [file.name]
        with pytest.raises(TeranInputError, match="shard 0"):
            PackedSource(out).read("1")
        file.write_bytes(whole)
    assert PackedSource(out).fingerprint() == fingerprint
    (out / "00000.features.npy").write_bytes(b"")
    with pytest.raises(TeranInputError, match="can't read shard 0"):
        PackedSource(out).read("1")
    (out / PACK_FILE).write_text('{"version": 1}')
    with pytest.raises(TeranInputError, match=r"pack\.json is damaged"):
        open_regions(out)
    (out / PACK_FILE).write_text('{"version": 9}')
    with pytest.raises(TeranInputError, match="packed in the format 9, not 1"):
        open_regions(out)


def test_what_has_changed_is_packed_anew(layout: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    pack(open_regions(layout), list(SIZES), out)
    features, _ = made("1")
    np.savez(layout / "features_36" / "bu_att" / "1.npz", feat=features + 1)
    pack(open_regions(layout), list(SIZES), out)
    assert (open_regions(out).read("1").features == features + 1).all()


def test_the_papers_36_regions_come_before_others(layout: Path) -> None:
    other = layout / "features_100" / "bu_att"
    other.mkdir(parents=True)
    np.savez(other / "5.npz", feat=np.zeros((1, 6)))
    assert open_regions(layout).ids() == ["1", "2", "10", "11"]


def test_a_changed_file_or_size_changes_the_fingerprint(layout: Path) -> None:
    before = open_regions(layout).fingerprint()
    assert open_regions(layout).fingerprint() == before
    (layout / "sizes.json").write_text(json.dumps(SIZES | {"1": [99, 50]}))
    assert open_regions(layout).fingerprint() != before
    (layout / "sizes.json").write_text(json.dumps(SIZES))
    assert open_regions(layout).fingerprint() == before
    np.savez(layout / "features_36" / "bu_att" / "1.npz", feat=np.zeros((4, 6)))
    assert open_regions(layout).fingerprint() != before


def test_a_directory_without_regions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeranInputError, match=r"holds no regions: neither pack\.json"):
        open_regions(tmp_path)
