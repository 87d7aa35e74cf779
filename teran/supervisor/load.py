"""Measures how much work waits, from Triton's own metrics, and tells the models.

What a model has been given is what was admitted for it; what it has done, Triton counts. A model at
full work, one that had requests waiting at both ends of a while, shows how fast it is.
"""

import re
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field, replace
from math import exp

from teran.runtime.admission import EXCESSIVE
from teran.runtime.load import MODELS, Load, LoadFile
from teran.supervisor.health import fetch

_PERIOD = 0.05
"""Seconds between looks."""
_REST = 1.0
"""Seconds between looks while nothing is admitted: requests may come past the admission."""
_MEMORY = 2.0
"""Seconds after which a speed that was seen counts for a third."""
_LATELY = 5
"""Looks that together prove a model to be faster than is believed."""
_STUCK = 1.0
"""Seconds without progress, and with an empty queue, after which nothing is left to do."""
_LARGEST_BATCH = 64
"""Items that may be under way while the queue is empty."""
_FEWEST = 8
"""Requests that always may wait."""
_SERIES = re.compile(
    r'^nv_inference_(pending_request_count|count|request_success)\{model="(\w+)",[^}]*\} (\S+)',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Counts:
    """What Triton says of a model."""

    pending: float = 0.0
    """Requests in its queue."""
    items: float = 0.0
    """Ever done."""
    requests: float = 0.0
    """Ever done."""


@dataclass
class ModelLoad:
    """What follows from a model's counts, one look after the other."""

    counts: Counts = field(default_factory=Counts)
    _at: float = 0.0
    _busy: float = 0.0
    _items: float = 0.0
    _requests: float = 0.0
    _difference: float | None = None
    """Between what was admitted and what was done, with nothing left to do: some items fail, and
    some requests come past the admission."""
    _progress: float = 0.0
    _lately: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LATELY))
    """Seconds between looks, and items done between them."""
    _number: float = 0.0

    def look(self, counts: Counts, admitted: float, at: float, max_wait: float) -> Load:
        """Take new counts in.

        Args:
            counts: what Triton says.
            admitted: items ever let in.
            at: when, in seconds.
            max_wait: seconds a request may wait; 0 for any time.
        """
        before, self.counts = self.counts, counts
        if self._difference is None or counts.items < before.items:  # a new server
            self._difference, before = admitted - counts.items, counts
        elapsed, done = at - (self._at or at), counts.items - before.items
        if done or counts.pending or self._progress == 0:
            self._progress = at
        self._lately.append((elapsed, done))
        total, finished = (sum(column) for column in zip(*self._lately, strict=True))
        faster = finished * self._busy > total * self._items  # than is believed
        if (before.pending and counts.pending) or faster:
            kept = exp(-elapsed / _MEMORY)
            self._busy = kept * self._busy + elapsed
            self._items = kept * self._items + done
            self._requests = kept * self._requests + counts.requests - before.requests
        seconds = self._busy / self._items if self._items else 0.0
        left = admitted - counts.items - self._difference
        if counts.pending == 0 and at - self._progress > max(_STUCK, 2 * left * seconds):
            left = 0.0
        left = min(max(left, counts.pending), (counts.pending + 1) * _LARGEST_BATCH)
        self._difference = admitted - counts.items - left
        excess = 0.0
        if max_wait and self._busy:
            most = EXCESSIVE * max_wait * self._requests / self._busy
            excess = max(0.0, counts.pending - max(_FEWEST, most))
        self._at, self._number = at, self._number + 1
        return Load(at, left, admitted, seconds, excess, self._number)


class LoadMonitor:
    """A thread that looks, and writes what it sees into a file."""

    def __init__(self, metrics_url: str, file: LoadFile, max_wait: float) -> None:
        """Start it.

        Args:
            metrics_url: Triton's own.
            file: where to write.
            max_wait: seconds a request may wait.
        """
        self._url, self._file, self._max_wait = metrics_url, file, max_wait
        self._models = {name: ModelLoad() for name in MODELS}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        looked, known = 0.0, [0.0] * len(MODELS)
        while not self._stop.wait(_PERIOD):
            admitted = [self._file.admitted(name) for name in MODELS]
            at = time.monotonic()
            last = {name: self._file.read(name) for name in MODELS}
            idle = not any(load.items for load in last.values())
            if idle and admitted == known and at - looked < _REST:
                for name, load in last.items():
                    self._file.write(name, replace(load, at=at))
                continue
            looked, known = at, admitted
            try:
                counts = read_counts(fetch(self._url, timeout=_REST))
            except OSError:  # no server, or no metrics: the models reckon on by themselves
                continue
            for name, model in self._models.items():
                load = model.look(
                    counts[name], self._file.admitted(name), time.monotonic(), self._max_wait
                )
                self._file.write(name, load)


def read_counts(text: str) -> dict[str, Counts]:
    """The counts of every model in Triton's metrics."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for name, model, value in _SERIES.findall(text):
        values[model][name] = float(value)
    return defaultdict(
        Counts,
        {
            model: Counts(
                found.get("pending_request_count", 0.0),
                found.get("count", 0.0),
                found.get("request_success", 0.0),
            )
            for model, found in values.items()
        },
    )
