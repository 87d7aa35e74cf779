"""Trains the demo's detector on drawn scenes: boxes, shapes and attributes."""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import machine
from examples.scenes.dataset import Sample, make_sample, make_split, on_all_cores
from examples.scenes.judge import object_hits
from examples.scenes.regions import find_regions
from examples.scenes.scene import COLOURS, SHAPES, SIZES, TEXTURES
from teran.detector import DetectorConfig, RegionDetector
from teran.training.detection import DetectorTrainer, DetectorTrainingConfig, LabelledPhoto

ATTRIBUTES = (*COLOURS, *SIZES, *TEXTURES)
CONFIG = DetectorConfig(
    depth=50,
    stem_channels=8,
    res2_channels=16,
    width_per_group=8,
    rpn_channels=64,
    classes=len(SHAPES),
    attributes=len(ATTRIBUTES),
    min_side=384,
    max_side=512,
    proposals_before_nms=400,
    proposals=48,
    min_regions=8,
    max_regions=20,
)
"""ResNet-50 with an eighth to a sixteenth of the original's channels: 0.3 million weights."""
SERVED = replace(CONFIG, proposals=24)
"""Scenes hold eight objects at most, and those are among its first proposals."""


def labelled(index: int, split: str) -> LabelledPhoto:
    """A scene as detectors are taught: what is where, and what it is like."""
    sample = make_sample(index, split)
    objects = sample.scene.objects
    attributes = [
        [name in (item.colour, item.size, item.texture) for name in ATTRIBUTES] for item in objects
    ]
    return LabelledPhoto(
        np.asarray(sample.image()),
        np.array([item.box for item in objects], np.float32),
        np.array([SHAPES.index(item.shape) for item in objects]),
        np.array(attributes),
    )


def draw_split(split: str, size: int) -> list[LabelledPhoto]:
    """Draw the first `size` scenes of a split."""
    return on_all_cores(partial(labelled, split=split), range(size), f"drawing {split} scenes")


def finish(directory: Path) -> float:
    """Set how many regions the detector gives, and complete its record; its recall, in percent."""
    detector = RegionDetector.from_pretrained(directory)
    detector.config = SERVED
    detector.save_pretrained(directory, SHAPES)
    recall = recall_of(directory, make_split("val", 200))
    file = directory / "training.json"
    record = json.loads(file.read_text()) | {
        "served": SERVED.to_dict(),
        "objects_with_a_region": round(recall, 2),
        "machine": machine.describe(),
    }
    file.write_text(json.dumps(record, indent=1) + "\n")
    return recall


def recall_of(directory: Path, samples: list[Sample]) -> float:
    """Which part of the objects, in percent, has a region of an IoU of at least 0.5."""
    found = find_regions(samples, directory)
    hits = [object_hits(sample, one.boxes) for sample, one in zip(samples, found, strict=True)]
    return 100 * float(np.concatenate(hits).mean())


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/scenes/detector"))
    parser.add_argument("--scenes", type=int, default=3000, help="training scenes")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    options = parser.parse_args()
    config = DetectorTrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=100,
        proposals=16,
    )
    detector = RegionDetector(CONFIG)
    print(f"{sum(p.numel() for p in detector.parameters()):,} weights, {options.scenes} scenes")
    trainer = DetectorTrainer(detector, config, options.out, SHAPES)
    trainer.run(draw_split("train", options.scenes))
    recall = finish(options.out)
    print(f"objects with a region, of unseen scenes: {recall:.1f} %; kept in {options.out}")


if __name__ == "__main__":
    main()
