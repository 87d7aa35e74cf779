"""Evaluation through galleries: what a search finds, not what a matrix of scores says."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from teran_client import Entry, ImageRegions, TeranClient

from teran.contract import MAX_RESULTS
from teran.errors import TeranInputError
from teran.evaluation.data import RegionSource, Split
from teran.evaluation.protocol import Fold
from teran_research.evaluate import progress_bars
from teran_research.roads import sent

Floats = npt.NDArray[np.float32]
_NOT_FOUND = np.finfo(np.float32).min
_QUERIES = 200
"""Of one call: a thousand results each are many objects."""


def evaluate_through_galleries(
    folds: Sequence[Split],
    grades: Sequence[dict[str, Floats]],
    source: RegionSource,
    client: TeranClient,
) -> list[Fold]:
    """Index every fold's images and captions in two galleries, and search each by the other.

    A search gives a thousand results at most. What comes later has no rank: it counts as last, so
    mean ranks may come out too large, and is among the ties of the report.

    Args:
        folds: from `folds_of`.
        grades: of every fold, the relevance of its images to its captions (M, N), by measure.
        source: the images' regions.
        client: of a server with galleries; its write key allows to drop them afterwards.

    Raises:
        TeranInputError: an image is damaged.
        TeranServerError: the server fails.
    """
    judged = []
    for fold, graded in zip(folds, grades, strict=True):
        images = {str(i): sent(source.read(image), image) for i, image in enumerate(fold.image_ids)}
        captions = _with_words(client, fold.captions)
        with _gallery(client) as of_images, _gallery(client) as of_captions, progress_bars() as bar:
            _index(client, images, of_images, bar("indexing images", len(images)))
            _index(client, captions, of_captions, bar("indexing captions", len(captions)))
            # A sentence without a word scores 0, as in a matrix of scores.
            by_caption = np.zeros((len(fold.captions), len(images)), np.float32)
            by_caption[[int(place) for place in captions]] = _NOT_FOUND
            by_image = by_caption.T.copy()
            asked = bar("searching by captions", len(captions))
            _search(client, captions, of_images, by_caption, asked)
            asked = bar("searching by images", len(images))
            _search(client, images, of_captions, by_image, asked)
        judged.append(Fold.of(by_caption.T, fold.owner, graded, by_image))
    return judged


def _with_words(client: TeranClient, captions: Sequence[str]) -> dict[str, str]:
    """Captions by their places, but for those of one word piece: no gallery takes them."""
    short = [i for i, caption in enumerate(captions) if len(caption.split()) < 2]
    encoded = client.encode_captions([captions[i] for i in short], verbatim=True)
    without = {i for i, one in zip(short, encoded, strict=True) if not one.word_mask.any()}
    return {str(i): caption for i, caption in enumerate(captions) if i not in without}


@contextmanager
def _gallery(client: TeranClient) -> Iterator[str]:
    """The name of a gallery that nobody else uses, dropped at the end."""
    name = f"evaluation-{uuid4().hex[:12]}"
    try:
        yield name
    finally:
        with suppress(TeranInputError):  # it was never made
            client.drop_gallery(name)


def _index(
    client: TeranClient,
    items: Mapping[str, ImageRegions] | Mapping[str, str],
    gallery: str,
    progress: Callable[[int], None],
) -> None:
    entries = (Entry(item, id=place) for place, item in items.items())
    for _ in client.index(entries, gallery=gallery, verbatim=True):
        progress(1)


def _search(
    client: TeranClient,
    queries: Mapping[str, ImageRegions] | Mapping[str, str],
    gallery: str,
    scores: Floats,
    progress: Callable[[int], None],
) -> None:
    """Write what is found for every query into its row of (queries, items)."""
    places = list(queries)
    asked: list[Any] = list(queries.values())
    most = min(scores.shape[1], MAX_RESULTS)
    for first in range(0, len(asked), _QUERIES):
        part = asked[first : first + _QUERIES]
        results = client.search(part, most, gallery=gallery, verbatim=True)
        for place, result in zip(places[first : first + _QUERIES], results, strict=True):
            scores[int(place), [int(hit.id) for hit in result]] = [hit.score for hit in result]
        progress(len(part))
