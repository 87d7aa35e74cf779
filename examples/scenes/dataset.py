"""The Scenes data set: deterministic splits, none of which shares a scene with another."""

from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from examples.scenes.captions import Caption, describe
from examples.scenes.draw import draw
from examples.scenes.regions import features, propose
from examples.scenes.scene import HEIGHT, WIDTH, Scene, contrast_scene, sample_scene

CAPTIONS_PER_SCENE = 5
_SIZE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """One scene as a model sees it, with the scene itself for evaluation."""

    scene: Scene
    features: Floats
    """(R, FEATURE_DIM)"""
    pixel_boxes: Floats
    """(R, 4), x1 y1 x2 y2 in pixels"""
    captions: tuple[Caption, ...]

    @property
    def boxes(self) -> Floats:
        """(R, 4), as fractions of the image's width and height."""
        return self.pixel_boxes / _SIZE

    def image(self) -> Image.Image:
        return draw(self.scene)


def _random(split: str, index: int, purpose: str) -> Random:
    return Random(f"scenes/{split}/{index}/{purpose}")


def _observe(scene: Scene, captions: tuple[Caption, ...], random: Random) -> Sample:
    boxes = propose(scene, random)
    return Sample(scene, features(draw(scene), boxes), np.array(boxes, np.float32), captions)


def make_sample(index: int, split: str) -> Sample:
    """Make sample `index` of `split`: always the same one."""
    scene = sample_scene(_random(split, index, "scene"))
    words = _random(split, index, "captions")
    captions = tuple(describe(scene, words) for _ in range(CAPTIONS_PER_SCENE))
    return _observe(scene, captions, _random(split, index, "regions"))


def make_contrast_pair(index: int) -> tuple[Sample, Sample]:
    """Make two scenes that differ in one attribute, each with its own one caption.

    Both captions are written with the same random choices, so that they differ only in what
    differs between the scenes.
    """
    random = _random("contrast", index, "scene")
    while True:
        scene = sample_scene(random)
        i, j = random.sample(range(len(scene.objects)), 2)
        other = contrast_scene(scene, i, j, random)
        seed = random.getrandbits(32)
        first, second = (describe(s, Random(seed), (i, j)) for s in (scene, other))
        if first.words != second.words:
            break
    boxes = f"{random.getrandbits(32)}"
    return (_observe(scene, (first,), Random(boxes)), _observe(other, (second,), Random(boxes)))


def make_split(split: str, size: int, *, quiet: bool = False) -> list[Sample]:
    """Make the first `size` samples of a split, on all cores."""
    with ProcessPoolExecutor() as pool:
        samples: Iterable[Sample] = pool.map(
            partial(make_sample, split=split), range(size), chunksize=32
        )
        return list(track(samples, f"drawing {split} scenes", total=size, disable=quiet))
