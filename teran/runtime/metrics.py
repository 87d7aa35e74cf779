"""What models count and measure, under Prometheus names.

A model process adds up its values in a small file of its own, mapped into memory, and the
supervisor exposes the sums of all files. So a value costs less than a microsecond, where Triton's
custom metrics take a message to the server for each, and counters outlive a model process.
(prometheus_client has such a mode, but can't be imported in Triton's stub where the interpreter's
`ssl` needs symbols that the stub lacks.) Without a directory, as under a server nobody supervises,
nothing is recorded.

No label has values that a client chooses; the names of galleries come from the supervisor.
"""

import json
import mmap
import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from teran.errors import TeranInputError, TeranOverloadedError, TeranTimeoutError
from teran.runtime.admission import DeferredError
from teran.runtime.environment import METRICS_DIRECTORY_VARIABLE

GALLERIES_FILE = "galleries.json"
"""What the gallery model last said of its galleries, in the same directory."""
_SUFFIX = ".metrics"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True)
class Metric:
    """A counter, or with buckets a histogram."""

    name: str
    meaning: str
    buckets: tuple[float, ...] = ()
    """Upper bounds; +Inf comes on top."""
    by_model: bool = False
    """Whether every model is told apart, by the label `model`."""

    @property
    def size(self) -> int:
        """Values it is made of: a counter's, or every bucket's and the sum."""
        return len(self.buckets) + 2 if self.buckets else 1


EXECUTION_SECONDS = Metric(
    "teran_execution_seconds", "Time of one execution of a model, all its items together",
    _SECONDS, by_model=True,
)  # fmt: skip
EXECUTION_ITEMS = Metric(
    "teran_execution_items", "Items the batcher brought together in one execution",
    (1, 2, 4, 8, 16, 32, 64, 128, 256), by_model=True,
)  # fmt: skip
REFUSED_REQUESTS = Metric(
    "teran_refused_requests", "Requests refused for what they hold", by_model=True
)
OVERLOADED_REQUESTS = Metric(
    "teran_overloaded_requests", "Requests refused as too much was waiting already", by_model=True
)
DEFERRED_REQUESTS = Metric(
    "teran_deferred_requests", "Requests in bulk that had to come again, as others come first",
    by_model=True,
)  # fmt: skip
ABANDONED_REQUESTS = Metric(
    "teran_abandoned_requests", "Requests not done, as their clients had gone or waited no longer",
    by_model=True,
)  # fmt: skip
FAILED_REQUESTS = Metric(
    "teran_failed_requests", "Requests a model failed to answer, through no fault of theirs",
    by_model=True,
)  # fmt: skip
CAPTION_WORD_PIECES = Metric(
    "teran_caption_word_pieces", "Word pieces of a caption, with [CLS] and [SEP]",
    (4, 8, 12, 16, 24, 32, 48, 64, 96),
)  # fmt: skip
CAPTIONS_TRUNCATED = Metric(
    "teran_captions_truncated", "Captions cut to the longest the model takes"
)
IMAGE_REGIONS = Metric(
    "teran_image_regions", "Regions of an image that was encoded",
    (1, 10, 20, 36, 50, 64, 100, 128),
)  # fmt: skip
SEARCH_SECONDS = Metric(
    "teran_search_seconds",
    "Time of a search by sentences, from their tokenization to the answer", _SECONDS,
)  # fmt: skip
SEARCHES = Metric("teran_searches", "Searches answered")
SEARCHES_EMPTY = Metric("teran_searches_empty", "Searches that found nothing")
SEARCH_CANDIDATES = Metric(
    "teran_search_candidates", "Items whose score a search computed",
    (10, 64, 100, 250, 1000, 2500, 10_000, 100_000, 1_000_000),
)  # fmt: skip
SEARCH_PRUNED = Metric(
    "teran_search_pruned_ratio", "Share of the items that a search did not score",
    (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
)  # fmt: skip
SEARCH_SCORE = Metric(
    "teran_search_best_score_per_word", "Score per word of a search's best hit",
    (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)  # fmt: skip
GALLERY_UPSERTS = Metric("teran_gallery_upserts", "Items stored")
GALLERY_DELETES = Metric("teran_gallery_deletes", "Items deleted")
GALLERY_WRITE_ERRORS = Metric(
    "teran_gallery_write_errors", "Writes a gallery failed to do, through no fault of the request"
)
GALLERY_READ_ERRORS = Metric(
    "teran_gallery_read_errors", "Reads a gallery failed to do, through no fault of the request"
)
METRICS = (
    EXECUTION_SECONDS, EXECUTION_ITEMS, REFUSED_REQUESTS, OVERLOADED_REQUESTS, DEFERRED_REQUESTS,
    ABANDONED_REQUESTS, FAILED_REQUESTS, CAPTION_WORD_PIECES, CAPTIONS_TRUNCATED, IMAGE_REGIONS,
    SEARCH_SECONDS, SEARCHES, SEARCHES_EMPTY, SEARCH_CANDIDATES, SEARCH_PRUNED, SEARCH_SCORE,
    GALLERY_UPSERTS, GALLERY_DELETES, GALLERY_WRITE_ERRORS, GALLERY_READ_ERRORS,
)  # fmt: skip
_OFFSETS = dict(zip(METRICS, accumulate((m.size for m in METRICS), initial=0), strict=False))
_COUNT = sum(metric.size for metric in METRICS)


class Recorder:
    """The values of one process, all of them 0 at first; nothing without a directory."""

    def __init__(self, model: str, directory: Path | None = None) -> None:
        """Record for a model, by default where the environment says."""
        given = directory or os.environ.get(METRICS_DIRECTORY_VARIABLE)
        self._directory = Path(given) if given else None
        self._values: memoryview[float] | None = None
        self._lock = Lock()  # a writing thread counts as well
        if self._directory:
            path = self._directory / f"{model}.{os.getpid()}{_SUFFIX}"
            with path.open("w+b") as file:
                file.truncate(8 * _COUNT)
                self._values = memoryview(mmap.mmap(file.fileno(), 8 * _COUNT)).cast("d")

    def add(self, metric: Metric, amount: float = 1) -> None:
        """Let a counter grow."""
        if self._values is not None:
            with self._lock:
                self._values[_OFFSETS[metric]] += amount

    def observe(self, metric: Metric, values: Iterable[float]) -> None:
        """Count values in a histogram."""
        if self._values is None:
            return
        offset, bounds = _OFFSETS[metric], metric.buckets
        with self._lock:
            for value in values:
                self._values[offset + bisect_left(bounds, value)] += 1
                self._values[offset + len(bounds) + 1] += value

    def execution(self, items: int, errors: Iterable[BaseException | None], seconds: float) -> None:
        """One execution: of so many items, with what its requests were answered by."""
        self.observe(EXECUTION_SECONDS, [seconds])
        self.observe(EXECUTION_ITEMS, [items])
        for error in errors:
            if isinstance(error, TeranInputError):
                self.add(REFUSED_REQUESTS)
            elif isinstance(error, DeferredError):
                self.add(DEFERRED_REQUESTS)
            elif isinstance(error, TeranOverloadedError):
                self.add(OVERLOADED_REQUESTS)
            elif isinstance(error, TeranTimeoutError):
                self.add(ABANDONED_REQUESTS)
            elif error is not None:
                self.add(FAILED_REQUESTS)

    def report_galleries(self, info: dict[str, Any]) -> None:
        """Leave word of the galleries for the supervisor."""
        if self._directory:
            path = self._directory / GALLERIES_FILE
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(info), encoding="utf-8")
            temporary.replace(path)


def read_recorded(directory: Path) -> dict[str, list[float]]:
    """The values of every model, the sums over all its processes so far."""
    totals: dict[str, list[float]] = {}
    for path in directory.glob(f"*{_SUFFIX}"):
        data = path.read_bytes()
        if len(data) == 8 * _COUNT:  # it is made in two steps
            total = totals.setdefault(path.name.split(".")[0], [0.0] * _COUNT)
            for i, value in enumerate(memoryview(data).cast("d")):
                total[i] += value
    return totals


def values_of(metric: Metric, recorded: list[float]) -> list[float]:
    """One metric's values: every bucket's own count and the sum, or the counter's value."""
    offset = _OFFSETS[metric]
    return recorded[offset : offset + metric.size]
