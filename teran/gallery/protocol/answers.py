"""What a gallery answers: hits, explanations and reports, as arrays."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from teran.errors import TeranInputError
from teran.gallery.catalog import Gallery
from teran.gallery.item import Item
from teran.gallery.protocol.request import Arrays, Request
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Hit, Query, SearchResult

_PAGE = 64
"""Items read at once: a request may find more than it may be answered."""


@dataclass(frozen=True, eq=False)
class Search:
    """One item of a search request."""

    query: Query
    tokens: Sequence[str]
    where: dict[str, Any] | None


def report(request: Request, content: object) -> Arrays:
    """The same for each item of a request, as the batcher wants one answer for each."""
    count = max((len(value) for value in request.inputs.values()), default=1)
    return reports([content] * count)


def reports(contents: Sequence[object]) -> Arrays:
    """One for each item of a request."""
    return {"report": np.array([[json.dumps(one).encode()] for one in contents], np.object_)}


def results(
    gallery: Gallery,
    request: Request,
    answers: Sequence[tuple[Search, SearchResult]],
    most_bytes: int,
) -> Arrays:
    """Hits of all searches of a request, filled up with empty ids to the longest.

    Raises:
        TeranInputError: their records have more than `most_bytes`.
    """
    explain = request.get("explain", bool, False)
    width = max(len(found.hits) for _, found in answers)
    shape = (len(answers), width)
    outputs: Arrays = {
        "ids": np.full(shape, b"", np.object_),
        "scores": np.zeros(shape, np.float32),
        "scores_per_word": np.zeros(shape, np.float32),
        "records": np.full(shape, b"", np.object_),
    }
    searched, size = [], 0
    for i, (search, found) in enumerate(answers):
        for place, (hit, item) in enumerate(_items(gallery, found.hits)):
            record = item.described()
            if explain:
                record["matches"] = _matches(gallery, item, search)
            outputs["ids"][i, place] = item.id.encode()
            outputs["scores"][i, place] = hit.score
            outputs["scores_per_word"][i, place] = hit.score_per_word
            outputs["records"][i, place] = json.dumps(record).encode()
            size += len(outputs["records"][i, place])
            if size > most_bytes:
                raise TeranInputError(
                    f"the answer has more than {most_bytes} bytes of records; ask for fewer "
                    "results, or send the queries in several requests"
                )
        searched.append(
            {"items": found.items, "pruned": round(found.pruned, 4), "exact": found.exact}
        )
    return outputs | reports(searched)


def _items(gallery: Gallery, hits: Sequence[Hit]) -> Iterator[tuple[Hit, Item]]:
    """What was found, in order; without what was deleted a moment ago."""
    for start in range(0, len(hits), _PAGE):
        page = hits[start : start + _PAGE]
        items = gallery.items([hit.point for hit in page])
        yield from ((hit, items[hit.point]) for hit in page if hit.point in items)


def _matches(gallery: Gallery, item: Item, search: Search) -> list[dict[str, Any]]:
    """For every word its best region: the query's words in an image, or a sentence's in the query.

    Where images are compared with each other, the query's regions take the words' part.
    """
    cosine = gallery.similarity(item.point, search.query.rows)
    known = item.tokens if gallery.kind is Kind.SENTENCES else item.boxes
    if known is not None and len(known) not in (0, len(cosine)):  # it was replaced a moment ago
        return []
    words: Sequence[str] = search.tokens
    if gallery.kind is Kind.SENTENCES:
        cosine, words = cosine.T, item.tokens
    result = []
    for lane, region in enumerate(cosine.argmax(axis=0).tolist()):
        match: dict[str, Any] = {"word": words[lane]} if words else {"query_region": lane}
        match |= {"region": region, "cosine": round(float(cosine[region, lane]), 4)}
        if item.boxes is not None:
            match["box"] = [round(float(x), 4) for x in item.boxes[region]]
        result.append(match)
    return result
