"""A small data set as Flickr30k lies on a disk, in the authors' layout."""

import json
from pathlib import Path

import numpy as np

from tests.conftest import TINY, WORDS

SIZE = (80, 60)


def sentence(seed: int) -> str:
    """One to eight words, of which half the sentences end in a full stop."""
    random = np.random.default_rng(seed)
    words = [word for word in WORDS if word.isalpha()]
    return " ".join(random.choice(words, random.integers(1, 9))) + " ." * int(random.integers(2))


def write_dataset(root: Path, images: int) -> None:
    """Write images of 20 to 40 regions, with five captions each: `sentence` of 5 i and so on."""
    random = np.random.default_rng(0)
    for folder in ("bu_att", "bu_box"):
        (root / "features_36" / folder).mkdir(parents=True)
    for image in range(images):
        regions = int(random.integers(20, 40))
        features = random.random((regions, TINY.feature_dim), np.float32)
        corners = np.sort(random.random((regions, 2, 2)), axis=1).reshape(regions, 4)
        np.savez(root / "features_36" / "bu_att" / f"{image}.npz", feat=features)
        np.save(root / "features_36" / "bu_box" / f"{image}.npy", corners * [*SIZE, *SIZE])
    described = [
        {"split": "test", "sentences": [{"raw": sentence(5 * i + j)} for j in range(5)]}
        for i in range(images)
    ]
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": described}))
    (root / "sizes.json").write_text(json.dumps({str(i): SIZE for i in range(images)}))
