"""A split through a road: embeddings, scores of all pairs, and what is reported of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from teran.errors import TeranInputError
from teran.evaluation.data import RegionSource, Split
from teran.evaluation.protocol import Fold
from teran.evaluation.scoring import score_all
from teran_research.cache import EmbeddingCache
from teran_research.roads import Road

Floats = npt.NDArray[np.float32]
FOLD = 1000
"""Images of a fold in the protocol 1k."""
PROTOCOLS = ("1k", "5k")
_MOST_NAMED = 5


def folds_of(split: Split, protocol: str) -> list[Split]:
    """The sets of images that are ranked by themselves.

    Args:
        split: all of it.
        protocol: `1k`, folds of a thousand images, of which a rest is left out as the authors do,
            or `5k`, all images at once.

    Raises:
        TeranInputError: there are too few images, or no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise TeranInputError(f"{protocol!r} is none of the protocols {', '.join(PROTOCOLS)}")
    images = len(split.image_ids)
    if protocol == "5k":
        return [split]
    if images < FOLD:
        raise TeranInputError(
            f"the split {split.name!r} has {images} images; the protocol 1k needs {FOLD}, 5k takes "
            "all at once"
        )
    return [split.part(first, FOLD) for first in range(0, images - FOLD + 1, FOLD)]


def check_images(split: Split, source: RegionSource) -> None:
    """Make sure that all images are there before any is encoded.

    Raises:
        TeranInputError: some are not.
    """
    there = set(source.ids())
    missing = [image for image in split.image_ids if image not in there]
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (", ..." if len(missing) > _MOST_NAMED else "")
        raise TeranInputError(
            f"{len(missing)} of {len(split.image_ids)} images of the split {split.name!r} have no "
            f"regions: {named}"
        )


def evaluate(
    folds: Sequence[Split],
    grades: Sequence[dict[str, Floats]],
    source: RegionSource,
    road: Road,
    cache: Path,
) -> list[Fold]:
    """Encode, score and rank.

    Args:
        folds: from `folds_of`.
        grades: of every fold, the relevance of its images to its captions (M, N), by measure.
        source: the images' regions.
        road: what encodes.
        cache: directory of embeddings.

    Raises:
        TeranInputError: an image is damaged.
        TeranServerError: the server fails.
    """
    images = [image for fold in folds for image in fold.image_ids]
    captions = [caption for fold in folds for caption in fold.captions]
    seen = EmbeddingCache(cache, road.fingerprint, source.fingerprint(), *images)
    read = EmbeddingCache(cache, road.fingerprint, *captions)
    with progress_bars() as bar:
        regions = seen.fill(
            len(images),
            lambda part: road.images([source.read(image) for image in images[part]]),
            bar("encoding images", len(images)),
        )
        words = read.fill(
            len(captions),
            lambda part: road.captions(captions[part]),
            bar("encoding captions", len(captions)),
        )
        scored, judged, image, caption = bar("scoring images", len(images)), [], 0, 0
        for fold, graded in zip(folds, grades, strict=True):
            rows = slice(image, image := image + len(fold.image_ids))
            columns = slice(caption, caption := caption + len(fold.captions))
            scores = score_all(regions[rows], words[columns], road.pooling, scored)
            judged.append(Fold.of(scores, fold.owner, graded))
    return judged


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Bars on standard error, where that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def bar(what: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(what, total=total)
            return lambda done: progress.advance(task, done)

        yield bar
