"""Writes scenes as a data set in the authors' layout, as Flickr30k lies on a disk."""

import argparse
import json
from pathlib import Path

import numpy as np

from examples.scenes.dataset import make_split
from examples.scenes.regions import DETECTOR, find_regions
from examples.scenes.scene import HEIGHT, WIDTH
from teran.evaluation.data.layout import BOXES, FEATURES


def write_layout(directory: Path, split: str, scenes: int, detector: Path = DETECTOR) -> None:
    """Write what a detector finds in scenes, and their captions.

    Args:
        directory: a new one.
        split: of the scenes: `train`, `val` or `test`.
        scenes: how many.
        detector: what finds the regions.
    """
    samples = make_split(split, scenes)
    regions = directory / "features_36"
    for folder in (FEATURES, BOXES):
        (regions / folder).mkdir(parents=True)
    for i, found in enumerate(find_regions(samples, detector)):
        np.savez(regions / FEATURES / f"{i}.npz", feat=found.features)
        np.save(regions / BOXES / f"{i}.npy", found.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT])
    images = [
        {"split": split, "sentences": [{"raw": caption.text} for caption in sample.captions]}
        for sample in samples
    ]
    (directory / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    sizes = {str(i): [WIDTH, HEIGHT] for i in range(scenes)}
    (directory / "sizes.json").write_text(json.dumps(sizes))


def main() -> None:
    """Write as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--scenes", type=int, default=1000)
    options = parser.parse_args()
    write_layout(options.directory, options.split, options.scenes)
    print(f"{options.directory}: {options.scenes} scenes")


if __name__ == "__main__":
    main()
