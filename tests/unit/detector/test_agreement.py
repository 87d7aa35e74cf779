"""The report on a detector, from tables of the original's own form."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from teran.cli import register
from teran.commandline import new_app, run
from teran.detector import DetectorConfig, RegionDetector, Regions
from teran.detector.agreement import Original, agreement, compare, originals, total
from teran.errors import TeranInputError
from tests.conftest import REFERENCE

CONFIG = DetectorConfig(50, 4, 16, 4, 8, 10, 5, 64, 100, 200, 40, 6, 6)
DATA = REFERENCE.parent / "data" / "caffe10"


def line(name: str, found: Regions) -> str:
    texts = [
        base64.b64encode(np.ascontiguousarray(values, np.float32).tobytes()).decode()
        for values in (found.boxes, found.features)
    ]
    return "\t".join([name, "90", "120", "", "", "", "", str(len(found.boxes)), *texts]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A detector with random weights, and what it found in two photos."""
    torch.manual_seed(0)
    detector = RegionDetector(CONFIG)
    for name, value in detector.state_dict().items():
        if name != "anchors":
            value.copy_(
                torch.rand_like(value) if "running_var" in name else torch.randn_like(value) * 0.1
            )
            if name.endswith("norm.weight"):
                value.fill_(1.0)
    detector.save_pretrained(tmp_path / "detector", [f"class {i}" for i in range(10)])
    random, lines = np.random.default_rng(0), ""
    (tmp_path / "originals" / "photos").mkdir(parents=True)
    for name in ("one", "two"):
        photo = random.integers(0, 255, (90, 120, 3)).astype(np.uint8)
        Image.fromarray(photo).save(tmp_path / f"originals/photos/{name}.png")
        (found,) = detector.detect([photo])
        lines += line(name, found)
    (tmp_path / "originals" / "six.tsv").write_text(lines)
    return tmp_path


def test_a_detector_agrees_with_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["detector", "verify", str(folder / "detector"), str(folder / "originals")]
    register(app := new_app())
    with pytest.raises(SystemExit, match="0"):
        run(app, arguments)
    said = capsys.readouterr().out.splitlines()
    assert [text.split(":")[0] for text in said] == ["one", "two", "2 photos"]
    table = folder / "originals" / "six.tsv"
    count = sum(len(one.boxes) for one in originals(table))
    assert count > 6
    assert (
        f"{count} of {count} regions found, mean overlap 1.000; features differ by 0.0000"
        in said[2]
    )
    assert (folder / "detector/labels.txt").read_text().splitlines()[3] == "class 3"


def test_what_differs_is_measured() -> None:
    boxes = np.array([[0, 0, 99, 99], [200, 0, 299, 99], [0, 200, 99, 299]], np.float32)
    features = np.ones((3, 4), np.float32)
    moved = boxes + np.array([[1, 0, 1, 0], [60, 0, 60, 0], [0, 0, 0, 0]], np.float32)
    found = agreement(Original("a", boxes, features), moved[::-1], features * [[1], [9], [1.5]])
    assert (found.regions, found.matched) == (3, 2)
    assert found.overlap == pytest.approx((99 / 101 + 40 / 160 + 1) / 3)
    assert (found.mean_difference, found.max_difference) == pytest.approx((0.25, 0.5))
    both = total([found, agreement(Original("b", boxes, features), boxes, features)])
    assert (both.name, both.regions, both.matched) == ("2 photos", 6, 5)
    assert both.mean_difference == pytest.approx(0.1)


def test_tables_that_can_not_be_used_are_named(folder: Path) -> None:
    detector = RegionDetector.from_pretrained(folder / "detector")
    with pytest.raises(TeranInputError, match=r"has no \.tsv"):
        list(compare(detector, folder / "detector"))
    table = folder / "originals" / "six.tsv"
    (folder / "originals/photos/two.png").unlink()
    with pytest.raises(TeranInputError, match="has no photo two"):
        list(compare(detector, folder / "originals"))
    table.write_text(table.read_text()[:-30])
    with pytest.raises(TeranInputError, match=r"six\.tsv, line 2: "):
        list(originals(table))


@pytest.mark.skipif(not DATA.is_dir(), reason="no regions of the original here")
def test_the_originals_own_table_is_read() -> None:
    found = list(originals(DATA / "train2014_obj36.tsv"))
    assert len(found) == 10
    for one in found:
        assert one.boxes.shape == (36, 4)
        assert one.features.shape == (36, 2048)
        assert one.features.min() >= 0
