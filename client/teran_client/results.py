"""What the client's verbs return."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teran_client.images import Floats, ImageRegions


@dataclass(frozen=True, eq=False)
class EncodedCaption:
    """A caption's word embeddings.

    Attributes:
        caption: the sentence.
        tokens: its W word pieces, [CLS] and [SEP] included.
        word_embeddings: (W, E); rows of pieces that take no part in the alignment are zero.
        word_mask: (W,), true for the pieces that take part.
        truncated: whether the sentence was cut.
    """

    caption: str
    tokens: tuple[str, ...]
    word_embeddings: Floats
    word_mask: npt.NDArray[np.bool_]
    truncated: bool


@dataclass(frozen=True, eq=False)
class Match:
    """How one image and one caption fit.

    Attributes:
        score: the pooled score; it grows with the caption's length.
        score_per_word: the score over the number of aligned words, which a threshold can be set on.
        similarity: (R, W), the cosine of every region with every word piece.
        tokens: the W word pieces.
        word_mask: (W,), true for the pieces that were aligned.
        truncated: whether the caption was cut.
        boxes: (R, 4), where the regions are: x1 y1 x2 y2 as fractions of width and height.
    """

    score: float
    score_per_word: float
    similarity: Floats
    tokens: tuple[str, ...]
    word_mask: npt.NDArray[np.bool_]
    truncated: bool
    boxes: Floats

    def best_regions(self) -> list[tuple[str, int, float]]:
        """For every aligned word: the word, its best region's index and their cosine."""
        best = self.similarity.argmax(axis=0)
        return [
            (self.tokens[w], int(best[w]), float(self.similarity[best[w], w]))
            for w in np.flatnonzero(self.word_mask)
        ]


@dataclass(frozen=True, eq=False)
class Detection:
    """What the server found in a photo.

    Attributes:
        regions: features and boxes, as images are sent.
        confidence: (R,), how sure the detector was of each.
        labels: (R,), the likeliest class of each, as a number.
        size: the photo's width and height.
    """

    regions: ImageRegions
    confidence: Floats
    labels: npt.NDArray[np.int64]
    size: tuple[int, int]


@dataclass(frozen=True)
class Ranked:
    """One image of a ranking; `index` and `name` say which."""

    index: int
    name: str
    score: float
    score_per_word: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a call goes, in milliseconds; medians and means over `calls` calls.

    Attributes:
        calls: how many were made.
        total: median time a caller waits.
        client: time spent building requests and reading responses.
        network: the rest: transport, scheduling, and what the server does outside the models.
        models: per model its mean time waiting in the queue and computing.
    """

    calls: int
    total: float
    client: float
    network: float
    models: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        lines = [
            f"total {self.total:.2f} ms (median of {self.calls} calls)",
            f"├─ client {self.client:.2f} ms",
            f"├─ network and server {self.network:.2f} ms",
        ]
        for i, (model, (queue, compute)) in enumerate(self.models.items()):
            branch = "└─" if i == len(self.models) - 1 else "├─"
            lines.append(f"{branch} {model}: queue {queue:.2f} ms, compute {compute:.2f} ms")
        return "\n".join(lines)


@dataclass(frozen=True)
class Hit:
    """An item that a search found.

    Attributes:
        id: what it was indexed as.
        score: the pooled score; it grows with the sentence's length.
        score_per_word: the score over the number of words, which a threshold can be set on.
        uri: where it is, if that was said.
        text: the sentence, if it is one.
        metadata: what was stored with it.
        matches: where asked for, for every word the region that matches it best: `word`,
            `region`, their `cosine`, and the region's `box` in an image that was found.
    """

    id: str
    score: float
    score_per_word: float
    uri: str | None
    text: str | None
    metadata: Mapping[str, Any]
    matches: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SearchResult:
    """What a search found, the best first.

    Attributes:
        hits: the items.
        items: how many could have been found.
        pruned: the share of them that was never scored.
        exact: whether the result is proven to be the exhaustive one.
        truncated: whether the sentence was cut.
    """

    hits: list[Hit]
    items: int
    pruned: float
    exact: bool
    truncated: bool

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)
