"""Measures how much work waits, from Triton's own metrics, and tells the models.

What a model has been given is what was admitted for it; what has left it, Triton counts, done or
refused. A model at full work, one that in a while did not come to the end of what was left for it
before, shows how fast it is; what it has shed took no time, so it counts that itself. What its
forerunners still hold is left for it too, so that is the speed of the whole row up to it.
"""

import re
import threading
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, replace
from math import exp, inf

from teran.runtime.admission import EXCESSIVE
from teran.runtime.load import FEW, MODELS, Load, LoadFile
from teran.supervisor.health import fetch

_PERIOD = 0.05
"""Seconds between looks."""
_REST = 1.0
"""Seconds between looks while nothing is admitted: requests may come past the admission."""
_MEMORY = 2.0
"""Seconds of full work after which what was seen counts for a third."""
_LEAST = 0.2
"""Seconds of full work that tell how fast a model is."""
_PATIENCE = 10.0
"""Seconds of full work after which a model that has become slower is taken for a third as fast."""
_LATELY = 20
"""Looks that together prove a model to be faster than is believed."""
_LONGEST = 2.0
"""Seconds, beyond what an item may wait, after which it is done or will never be."""
_LARGEST_BATCH = 64
"""Items that may be under way while the queue is empty."""
_FEWEST = 16
"""Requests that always may wait; more than the few behind which others are let in anyway, or those
would be shed."""
_LATEST = 0.1
"""What the last executions count for in how long one takes."""
_ENOUGH = 16
"""Items that tell how many of those that are let in come."""
_FORERUNNERS = {
    "textual_encoder": ("tokenizer",),
    "alignment": ("tokenizer", "textual_encoder", "visual_encoder"),
    "proposal_network": ("photo",),
    "region_network": ("photo", "proposal_network", "proposals"),
    "gallery": ("tokenizer", "textual_encoder"),  # images are not admitted for it: see Door
}
"""Whose outcome a model gets, of what is admitted for it."""
_SERIES = re.compile(  # GPUs' models have their label in front
    r"^nv_inference_(pending_request_count|count|request_success|exec_count"
    r'|compute_infer_duration_us)\{[^}]*\bmodel="(\w+)"[^}]*\} (\S+)',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Counts:
    """What Triton says of a model."""

    pending: float = 0.0
    """Requests in its queue."""
    items: float = 0.0
    """Ever done, or refused by the model."""
    requests: float = 0.0
    """Likewise."""
    executions: float = 0.0
    """Ever done."""
    computing: float = 0.0
    """Seconds that requests have ever spent in them."""


class Speed:
    """What a model does in a second at full work: the most of the last while.

    The most, as a shorter queue makes smaller batches, which are slower: a model that is taken for
    slow would be given less, and become so.
    """

    def __init__(self) -> None:
        self.items = 0.0
        """A second; 0 where nothing is known yet."""
        self._busy = self._done = self._requests = 0.0
        self._unbroken = 0.0
        """Seconds of full work without a pause, until now."""
        self._pending: list[tuple[float, float, float]] = []
        """What was done in them, while they are few, and since anything was: a batch counts at its
        end, so part of its time tells nothing, and a process that died has no end."""
        self._lately: deque[tuple[float, float]] = deque(maxlen=_LATELY)

    @property
    def requests(self) -> float:
        """A second."""
        return self.items * self._requests / self._done if self._done else 0.0

    def learn(
        self, elapsed: float, items: float, requests: float, *, busy: bool, goes_on: bool
    ) -> None:
        """Take in what was done between two looks.

        Args:
            elapsed: seconds between them.
            items: that were done.
            requests: that were done.
            busy: whether there was enough to do when they began.
            goes_on: whether some of that is still left, so that there always was something.
        """
        if busy:
            self._unbroken += elapsed
            self._pending.append((elapsed, items, requests))
            if items and self._unbroken > _LEAST:
                for one in self._pending:
                    self._take(*one)
                self._pending.clear()
        if not (busy and goes_on):
            self._unbroken = 0.0
            self._pending.clear()
        self._lately.append((elapsed, items))
        if self.items and len(self._lately) == _LATELY:  # which it may beat without a queue
            total, finished = (sum(column) for column in zip(*self._lately, strict=True))
            self.items = max(self.items, finished / total)

    def _take(self, elapsed: float, items: float, requests: float) -> None:
        kept = exp(-elapsed / _MEMORY)
        self._busy = kept * self._busy + elapsed
        self._done = kept * self._done + items
        self._requests = kept * self._requests + requests
        self.items *= exp(-elapsed / _PATIENCE)
        if self._busy > _LEAST:
            self.items = max(self.items, self._done / self._busy)


class ModelLoad:
    """What follows from a model's counts, one look after the other."""

    def __init__(self) -> None:
        self._counts, self._speed, self._done = Counts(), Speed(), 0.0
        self._difference: float | None = None
        """Between what was admitted and what was done, with nothing left to do: some items fail,
        and some requests come past the admission."""
        self.latency = 0.0
        """Seconds of an execution of one item; 0 where there was none yet."""
        self._at = self._left = self._number = 0.0
        self._admitted = 0.0
        self._new = self._missing = 0.0
        """Items let in lately, and those of them that have not come: as of when nothing waited, as
        only then one can tell."""
        self._proven, self._unproven = 0.0, 0.0
        """The difference at that time, and items let in since."""
        self._lately: deque[tuple[float, float, float]] = deque()
        """When how many items had ever been let in, and of them neither been done nor been at hand;
        infinitely many where some were waiting."""

    def look(
        self,
        counts: Counts,
        admitted: float,
        at: float,
        max_wait: float,
        *,
        quiet: bool,
        lost: float = 0.0,
        shed: float = 0.0,
        in_sight: float = inf,
        held: float = 0.0,
    ) -> Load:
        """Take new counts in.

        Args:
            counts: what Triton says.
            admitted: items ever let in.
            at: when, in seconds.
            max_wait: seconds a request may wait; 0 for any time.
            quiet: whether no request waits, for the model or for one of its forerunners.
            lost: items its forerunners have ever refused. Some were for other models, so too
                little may seem to be left, but never less than waits in its own queue. What waits
                before a forerunner counts there in full.
            shed: items the model has ever shed.
            in_sight: items that may wait or be at hand, for the model or for one of its
                forerunners, at most. What was let in and is not in sight has gone elsewhere.
            held: items that they say they have at hand.
        """
        before, self._counts = self._counts, counts
        if self._difference is None or counts.items < before.items:  # a new server
            self._difference = admitted - lost - counts.items - held
            before, self._left = counts, 0.0
            self._done, self._admitted = counts.items - shed, admitted
            self._new = self._missing = self._unproven = 0.0
            self._proven = self._difference
            self._lately.clear()
        balance = admitted - lost - counts.items
        self._lately.append((at, admitted, balance - held if quiet else inf))
        while len(self._lately) > 2 and self._lately[1][0] < at - _LONGEST - 2 * max_wait:
            self._lately.popleft()  # but the last before that, of which it was true then
        new = max(0.0, admitted - self._admitted)
        expected = self._difference + new * (1 - self._share)
        left = min(balance - expected, admitted - self._lately[0][1], in_sight)
        if quiet:  # so what was not done at such a time before is done by now, or never will be
            left = min(left, balance - min(balance for _, _, balance in self._lately))
        left = min(max(left, counts.pending), (counts.pending + 1) * _LARGEST_BATCH)
        elapsed, counted = at - (self._at or at), counts.items - before.items
        if 0 < counted == counts.executions - before.executions:
            took = (counts.computing - before.computing) / counted
            self.latency += _LATEST * (took - self.latency) if self.latency else took
        # Triton counts what is shed a moment later, or never if the process dies meanwhile.
        last, self._done = self._done, max(self._done, counts.items - shed)
        speed = self._speed
        if elapsed:
            done = self._done - last
            share = done / counted if counted else 0.0
            requests = share * (counts.requests - before.requests)
            busy, goes_on = self._left >= FEW, self._left > counted
            speed.learn(elapsed, done, requests, busy=busy, goes_on=goes_on)
        seconds = 1 / speed.items if speed.items else 0.0
        self._difference, self._admitted = balance - left, admitted
        kept = exp(-elapsed / _MEMORY)
        self._missing, self._unproven = kept * self._missing, self._unproven + new
        if quiet:
            self._missing += self._difference - self._proven
            self._new = kept * self._new + self._unproven
            self._proven, self._unproven = self._difference, 0.0
        excess = 0.0
        if max_wait and speed.items:
            most = EXCESSIVE * max_wait * speed.requests
            excess = max(0.0, counts.pending - max(_FEWEST, most))
        self._at, self._left, self._number = at, left, self._number + 1
        to_do = left * (1 - excess / counts.pending) if excess else left
        return Load(at, to_do, admitted, seconds, excess, self._number, self._share)

    @property
    def _share(self) -> float:
        """Of what is let in: what comes, as far as can be told."""
        if self._new < _ENOUGH:
            return 1.0
        return min(1.0, max(0.0, 1 - self._missing / self._new))


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
                for name, load in last.items():
                    self._file.write(name, replace(load, excess=0.0, number=0.0))
                continue
            for name, model in self._models.items():
                forerunners = _FORERUNNERS.get(name, ())
                row = (name, *forerunners)
                held = sum(map(self._file.held, row))
                load = model.look(
                    counts[name],
                    self._file.admitted(name),
                    time.monotonic(),
                    self._max_wait,
                    quiet=not any(counts[one].pending for one in row),
                    lost=sum(self._file.refused(one).failed for one in forerunners),
                    shed=self._file.refused(name).shed,
                    in_sight=held + sum(counts[one].pending * _LARGEST_BATCH for one in row),
                    held=held,
                )
                latency = sum(self._models[one].latency for one in row)
                self._file.write(name, replace(load, latency=latency))


def read_counts(text: str) -> dict[str, Counts]:
    """The counts of every model in Triton's metrics."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for name, model, value in _SERIES.findall(text):  # a model has several, of several GPUs
        values[model][name] += int(float(value))
    return defaultdict(
        Counts,
        {
            model: Counts(
                found.get("pending_request_count", 0.0),
                found.get("count", 0.0),
                found.get("request_success", 0.0),
                found.get("exec_count", 0.0),
                found.get("compute_infer_duration_us", 0.0) / 1e6,
            )
            for model, found in values.items()
        },
    )
