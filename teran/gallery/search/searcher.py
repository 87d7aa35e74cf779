"""Finds the best k items: exactly, without scoring all of them where that can be avoided.

Two ways lead to the same fp32 scores of the stored embeddings:

- *pruned*: bounds of all items, then scores of those that may be among the best. Provably exact.
- *scanned*: int8 scores of all items, then scores of the best few times k. It is the fallback
  where bounds tell too little, as for vectors without structure. On a GPU, which is not short of
  arithmetic, it is the only way, in the precision of the copy there.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.gallery.search.compact import Chunk, Compact
from teran.gallery.search.kernels import Kernel
from teran.gallery.search.kernels.base import Floats, Indices, Lanes, Rows
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Hit, Query, SearchResult, candidate_count

if TYPE_CHECKING:  # it needs torch
    from teran.gallery.search.device import DeviceCopy

RowsOf = Callable[[Chunk], Rows]

_WORTH = 0.25
"""Share of a gallery that bounds may leave over; beyond it, a scan is cheaper."""
_INT8_ERROR = 0.05
"""More than an int8 score may be off by, per word."""
_RETRY = 32
"""Searches that do without bounds after they were of no use."""


class Searcher:
    """Searches one gallery's compact copy."""

    def __init__(
        self, pooling: Pooling, kernel: Kernel, device: "DeviceCopy | None" = None
    ) -> None:
        """Search with `kernel`; where there is a copy on a device, that is scanned."""
        self._pooling, self._kernel, self._device = pooling, kernel, device
        self._without_bounds = 0

    def search(self, compact: Compact, queries: Sequence[Query]) -> list[SearchResult]:
        """Answer several searches in one pass over the gallery."""
        if not self._device or not len(compact):
            return self._by_host(compact, queries)
        on_host = [self._needs_host(query) for query in queries]
        host = self._by_host(
            compact, [q for q, there in zip(queries, on_host, strict=True) if there]
        )
        others = [q for q, there in zip(queries, on_host, strict=True) if not there]
        found = iter(host), iter(self._by_device(self._device, compact, others))
        return [next(found[0 if there else 1]) for there in on_host]

    def _needs_host(self, query: Query) -> bool:
        """Whether a device, which knows scores only roughly, can't answer."""
        sentences = self._pooling.kind is Kind.SENTENCES
        return query.exact or (sentences and query.min_score_per_word is not None)

    def _by_host(self, compact: Compact, queries: Sequence[Query]) -> list[SearchResult]:
        if not queries:
            return []
        lanes = self._pooling.lanes([query.rows for query in queries])
        work = _Work(self._pooling, self._kernel, compact, queries)
        if compact.basis and (self._without_bounds == 0 or any(q.exact for q in queries)):
            found = self._pruned(work, lanes)
            if found is not None:
                return found
            self._without_bounds = _RETRY
        self._without_bounds = max(self._without_bounds - 1, 0)
        return self._scanned(work, lanes)

    def _scanned(self, work: "_Work", lanes: Lanes) -> list[SearchResult]:
        approximate = work.scores(lanes, Chunk.rows)
        for i, scores in enumerate(approximate):
            if not work.queries[i].exact:
                work.leave_out(i, scores, _INT8_ERROR)
        return [
            work.found(i, _best(scores, work.candidate_count(i)))
            for i, scores in enumerate(approximate)
        ]

    def _by_device(
        self, device: "DeviceCopy", compact: Compact, queries: Sequence[Query]
    ) -> list[SearchResult]:
        if not queries:
            return []
        work = _Work(self._pooling, self._kernel, compact, queries)
        device.sync(compact)
        best = device.candidates(
            compact,
            self._pooling.lanes([query.rows for query in queries]),
            [self._pooling.clamp_rows(chunk.length) for chunk in compact.chunks],
            [query.allowed for query in queries],
            [work.candidate_count(i) for i in range(len(queries))],
        )
        return [work.found(i, items) for i, items in enumerate(best)]

    def _pruned(self, work: "_Work", lanes: Lanes) -> list[SearchResult] | None:
        """Search by bounds; None where they leave too much over."""
        basis = work.compact.basis
        assert basis is not None
        bounds = work.scores(basis.lanes(lanes), Chunk.bounds)
        first: list[tuple[Indices, Floats, Indices]] = []
        left = 0
        for i, query in enumerate(work.queries):
            work.leave_out(i, bounds[i])
            best = _best(bounds[i], max(2 * query.k, 32))
            scores = work.exact(i, best)
            floor = work.floor(i, best, scores)
            others = np.flatnonzero(bounds[i] >= floor)
            others = np.setdiff1d(others, best, assume_unique=True)
            first.append((best, scores, others))
            left += 0 if query.exact else len(others)
        if left > _WORTH * sum(work.allowed_count(i) for i in range(len(work.queries))):
            return None
        result = []
        for i, (best, scores, others) in enumerate(first):
            others = others[np.argsort(-bounds[i][others], kind="stable")]
            step = max(256, len(others) // 8)
            while len(others):
                part, others = others[:step], others[step:]
                best = np.concatenate([best, part])
                scores = np.concatenate([scores, work.exact(i, part)])
                # The rest comes in falling bounds: the first too low ends it.
                others = others[bounds[i][others] >= work.floor(i, best, scores)]
            result.append(
                SearchResult(
                    work.hits(i, best, scores), work.allowed_count(i), len(best), exact=True
                )
            )
        return result


class _Work:
    """Scores of one batch of queries. Items are numbered through all chunks."""

    def __init__(
        self, pooling: Pooling, kernel: Kernel, compact: Compact, queries: Sequence[Query]
    ) -> None:
        self._pooling, self._kernel = pooling, kernel
        self.compact, self.queries = compact, queries
        self._starts = np.cumsum([0, *(len(chunk) for chunk in compact.chunks)])
        self._lengths = np.concatenate(
            [np.full(len(c), c.length) for c in compact.chunks] or [np.zeros(0, int)]
        )
        self._lanes: dict[int, Lanes] = {}
        present = [chunk.present[: len(chunk)] for chunk in compact.chunks]
        everything = _join(present)
        self._allowed = [
            everything if query.allowed is None else _join(query.allowed) for query in queries
        ]

    def allowed_count(self, i: int) -> int:
        return int(np.count_nonzero(self._allowed[i]))

    def candidate_count(self, i: int) -> int:
        """How many of the best items by a coarse score are scored exactly."""
        query, count = self.queries[i], self.allowed_count(i)
        return count if query.exact else min(candidate_count(query.k), count)

    def found(self, i: int, candidates: Indices) -> SearchResult:
        """The result of a scan, whose best items are scored again."""
        hits = self.hits(i, candidates, self.exact(i, candidates))
        count = self.allowed_count(i)
        return SearchResult(hits, count, count, exact=len(candidates) == count)

    def scores(self, lanes: Lanes, rows_of: RowsOf) -> Floats:
        """All queries against all items (Q, N); what must not be found is at minus infinity."""
        result = np.empty((len(self.queries), int(self._starts[-1])), np.float32)
        for i, chunk in enumerate(self.compact.chunks):
            part = slice(self._starts[i], self._starts[i + 1])
            clamp = self._pooling.clamp_rows(chunk.length)
            result[:, part] = self._kernel.scores(rows_of(chunk), lanes, clamp_rows=clamp)
        for i, allowed in enumerate(self._allowed):
            result[i, ~allowed] = -np.inf
        return result

    def exact(self, i: int, items: Indices) -> Floats:
        """One query's fp32 scores of some items."""
        if i not in self._lanes:
            self._lanes[i] = self._pooling.lanes([self.queries[i].rows])
        result = np.empty(len(items), np.float32)
        owner = np.searchsorted(self._starts, items, side="right") - 1
        for number in np.unique(owner):
            chunk, mine = self.compact.chunks[number], owner == number
            clamp = self._pooling.clamp_rows(chunk.length)
            slots = items[mine] - self._starts[number]
            result[mine] = self._kernel.scores(
                chunk.exact_rows(), self._lanes[i], clamp_rows=clamp, which=slots
            )[0]
        return result

    def per_word(self, i: int, items: Indices, scores: Floats) -> Floats:
        """Scores over the number of words, which are the query's or the item's."""
        if self._pooling.kind is Kind.IMAGES:
            return scores / np.float32(len(self.queries[i].rows))
        mean: Floats = scores / self._lengths[items].astype(np.float32)
        return mean

    def leave_out(self, i: int, scores: Floats, error: float = 0.0) -> None:
        """Take out what is below a query's least score per word, by more than scores may be off.

        For sentences that is another order than by score: a long one scores high and fits badly.
        """
        least = self.queries[i].min_score_per_word
        if least is not None and self._pooling.kind is Kind.SENTENCES:
            scores[scores < (least - error) * self._lengths] = -np.inf

    def floor(self, i: int, items: Indices, scores: Floats) -> float:
        """The score below which nothing can be among the best k any more."""
        query = self.queries[i]
        floor = -np.inf
        if query.min_score_per_word is not None and self._pooling.kind is Kind.SENTENCES:
            scores = scores[self.per_word(i, items, scores) >= query.min_score_per_word]
        if len(scores) >= query.k:
            floor = float(np.partition(scores, len(scores) - query.k)[len(scores) - query.k])
        if query.min_score_per_word is not None and self._pooling.kind is Kind.IMAGES:
            floor = max(floor, query.min_score_per_word * len(query.rows))
        # What must not be found has a bound of minus infinity.
        return max(floor, float(np.finfo(np.float32).min))

    def hits(self, i: int, items: Indices, scores: Floats) -> list[Hit]:
        """The best k of some items; equal scores go by key, so that a result can be repeated."""
        query, per_word = self.queries[i], self.per_word(i, items, scores)
        keep = self._allowed[i][items] & (scores >= self.floor(i, items, scores))
        if query.min_score_per_word is not None:
            keep &= per_word >= query.min_score_per_word
        items, scores, per_word = items[keep], scores[keep], per_word[keep]
        points = [self._point(item) for item in items]
        order = sorted(range(len(items)), key=lambda j: (-scores[j], points[j].int))[: query.k]
        return [Hit(points[j], float(scores[j]), float(per_word[j])) for j in order]

    def _point(self, item: int) -> UUID:
        number = int(np.searchsorted(self._starts, item, side="right")) - 1
        point = self.compact.chunks[number].points[int(item - self._starts[number])]
        assert point is not None  # allowed slots hold an item
        return point


def _join(masks: Sequence[npt.NDArray[np.bool_]]) -> npt.NDArray[np.bool_]:
    return np.concatenate([*masks, np.zeros(0, bool)])


def _best(scores: Floats, count: int) -> Indices:
    """Positions of the largest scores, in no order."""
    if count >= len(scores):
        return np.flatnonzero(scores > -np.inf)
    chosen = np.argpartition(-scores, count)[:count] if count else np.zeros(0, np.int64)
    return chosen[scores[chosen] > -np.inf]
