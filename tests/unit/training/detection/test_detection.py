"""What a detector is trained on, and that it learns."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from teran.detector import DetectorConfig, RegionDetector
from teran.detector.boxes import overlaps
from teran.detector.proposals import anchors, propose
from teran.errors import TeranInputError
from teran.training.detection import DetectorTrainer, DetectorTrainingConfig, LabelledPhoto
from teran.training.detection.loop import frozen
from teran.training.detection.targets import (
    anchor_targets,
    place_anchors,
    proposal_targets,
    steps_to,
)

COLOURS = ("red", "blue")
CONFIG = DetectorConfig(50, 4, 8, 4, 8, 2, 2, 192, 256, 200, 8, 4, 4)


def labelled(seed: int) -> LabelledPhoto:
    """Two or three squares and circles, red and blue, on grey."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (256, 192), "grey")
    pen, boxes, classes, attributes = ImageDraw.Draw(image), [], [], []
    for x in (20, 100, 180)[: random.integers(2, 4)]:
        y, side = int(random.integers(5, 110)), int(random.integers(45, 70))
        kind, colour = int(random.integers(0, 2)), int(random.integers(0, 2))
        box = (x, y, x + side, y + side)
        (pen.rectangle if kind else pen.ellipse)(box, fill=COLOURS[colour])
        boxes.append(box)
        classes.append(kind)
        attributes.append([colour == 0, colour == 1])
    return LabelledPhoto(
        np.asarray(image), np.array(boxes, np.float32), np.array(classes), np.array(attributes)
    )


def test_steps_lead_to_the_boxes() -> None:
    """By the same arithmetic that makes proposals: a network that says them finds the boxes."""
    boxes = np.array([[20, 30, 85, 90], [100, 20, 170, 140]], np.float32)
    bases = anchors()
    placed = place_anchors(bases, 12, 16)
    best = overlaps(placed, boxes).argmax(axis=0)
    deltas, objectness = np.zeros((12, 16, 12, 4), np.float32), np.zeros((12, 12, 16), np.float32)
    deltas.reshape(-1, 4)[best] = steps_to(boxes, placed[best])
    objectness.transpose(1, 2, 0).reshape(-1)  # laid out as the network gives it
    for rank, place in enumerate(best):
        cell, anchor = divmod(int(place), 12)
        objectness[anchor, cell // 16, cell % 16] = 1 - 0.1 * rank
    flat = deltas.transpose(2, 3, 0, 1).reshape(48, 12, 16)
    found = propose(objectness, flat, bases, (192, 256), CONFIG)
    assert found[:2] == pytest.approx(boxes, abs=1e-3)


def test_which_anchors_are_objects() -> None:
    boxes = np.array([[16, 16, 79, 79], [150, 60, 230, 150]], np.float32)
    placed = place_anchors(anchors(), 12, 16)
    wanted = anchor_targets(placed, boxes, (192, 256), 64, np.random.default_rng(0))
    over = overlaps(placed[wanted.chosen], boxes)
    assert len(wanted.chosen) == 64
    assert 0 < wanted.is_object.sum() <= 32
    assert (over[~wanted.is_object].max(axis=1) < 0.3).all()
    assert set(over[wanted.is_object].argmax(axis=1)) == {0, 1}
    inside = placed[wanted.chosen]
    assert (inside >= 0).all()
    assert (inside[:, 2] < 256).all()
    assert not wanted.deltas[~wanted.is_object].any()


def test_which_proposals_are_what() -> None:
    boxes = np.array([[10, 10, 59, 59]], np.float32)
    proposals = np.array([[10, 10, 59, 70], [100, 100, 150, 150], [30, 30, 90, 90]], np.float32)
    wanted = proposal_targets(proposals, boxes, np.array([4]), 8, np.random.default_rng(0))
    found = {tuple(box): (label, which) for box, label, which in zip(
        wanted.boxes.tolist(), wanted.classes.tolist(), wanted.objects.tolist(), strict=True
    )}  # fmt: skip
    assert found == {
        (10, 10, 59, 70): (5, 0), (10, 10, 59, 59): (5, 0),
        (100, 100, 150, 150): (0, -1), (30, 30, 90, 90): (0, -1),
    }  # fmt: skip


def test_there_are_always_as_many_proposals_as_asked_for() -> None:
    boxes, classes = np.array([[10, 10, 59, 59]], np.float32), np.array([4])
    beside = np.array([[100, 100, 150, 150], [200, 20, 250, 90]], np.float32)
    some = proposal_targets(beside, boxes, classes, 9, np.random.default_rng(0))
    assert len(some.boxes) == len(some.classes) == 9
    assert sorted(some.classes) == [0] * 8 + [5]
    assert {tuple(box) for box in some.boxes} == {tuple(box) for box in (*beside, *boxes)}
    only = proposal_targets(boxes, boxes, classes, 6, np.random.default_rng(0))
    assert only.classes.tolist() == [5] * 6
    assert only.objects.tolist() == [0] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((192, 255, 3), np.uint8)}, r"pixels \(192, 255, 3\), the first"),
        ({"boxes": np.zeros((0, 4), np.float32)}, r"boxes \(0, 4\), expected \(objects, 4\)"),
        ({"classes": np.array([0])}, r"classes \(1,\)"),
        ({"attributes": np.zeros((3, 5), bool)}, r"attributes \(3, 5\), expected .* \(\d, 2\)"),
        ({"classes": None}, "classes beyond 0 to 1"),
    ],
)
def test_what_a_detector_can_not_learn_from(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = labelled(0)
    if change.get("classes", ...) is None:
        change = {"classes": np.full(len(good.boxes), 2)}
    trainer = DetectorTrainer(
        RegionDetector(CONFIG), DetectorTrainingConfig(epochs=1), tmp_path, quiet=True
    )
    with pytest.raises(TeranInputError, match=f"photo 1 .*{message}"):
        trainer.run([good, replace(good, **change)])


def test_a_detector_learns(tmp_path: Path) -> None:
    """In a few steps; what is kept is the detector as it is served."""
    photos = [labelled(seed) for seed in range(4)]
    config = DetectorTrainingConfig(epochs=4, learning_rate=3e-3, warmup_steps=1, proposals=8)
    trainer = DetectorTrainer(
        RegionDetector(CONFIG), config, tmp_path / "made", ("box", "ball"), quiet=True
    )
    trainer.run(photos)
    history = json.loads((tmp_path / "made" / "training.json").read_text())["history"]
    assert len(history) == 4
    for loss in ("objectness", "classes"):
        assert history[-1][loss] < history[0][loss]
    assert (tmp_path / "made" / "labels.txt").read_text() == "box\nball\n"
    detector = RegionDetector.from_pretrained(tmp_path / "made")
    expected = frozen(trainer.detector).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in detector.state_dict().items())
    (regions,) = detector.detect([photos[0].pixels])
    assert np.isfinite(regions.features).all()
