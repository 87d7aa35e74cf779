"""The Scenes data set: deterministic splits, none of which shares a scene with another."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from random import Random
from typing import TypeVar

from PIL import Image
from rich.progress import track

from examples.scenes.captions import Caption, describe
from examples.scenes.draw import draw
from examples.scenes.scene import Scene, contrast_scene, sample_scene

CAPTIONS_PER_SCENE = 5
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Sample:
    """A scene, and what is said of it. A model sees its picture and the sentences."""

    scene: Scene
    captions: tuple[Caption, ...]

    def image(self) -> Image.Image:
        """Draw it."""
        return draw(self.scene)

    def png(self) -> bytes:
        """Draw it into a file."""
        file = io.BytesIO()
        self.image().save(file, "PNG", compress_level=1)
        return file.getvalue()


def _random(split: str, index: int, purpose: str) -> Random:
    return Random(f"scenes/{split}/{index}/{purpose}")


def make_sample(index: int, split: str) -> Sample:
    """Make sample `index` of `split`: always the same one."""
    scene = sample_scene(_random(split, index, "scene"))
    words = _random(split, index, "captions")
    return Sample(scene, tuple(describe(scene, words) for _ in range(CAPTIONS_PER_SCENE)))


def make_split(split: str, size: int) -> list[Sample]:
    """Make the first `size` samples of a split."""
    return [make_sample(index, split) for index in range(size)]


def make_contrast_pairs(count: int) -> list[Sample]:
    """Make pairs, the two of each one after the other; see `make_contrast_pair`."""
    return [one for index in range(count) for one in make_contrast_pair(index)]


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
            return Sample(scene, (first,)), Sample(other, (second,))


def make_pngs(samples: Sequence[Sample], what: str = "scenes") -> list[bytes]:
    """Draw samples into files."""
    return on_all_cores(Sample.png, samples, f"drawing {what}")


def on_all_cores(call: Callable[[Item], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Call a function of a module for each item, in processes that inherit no threads."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        results = pool.map(call, items, chunksize=16)
        return list(track(results, what, total=len(items), transient=True))
