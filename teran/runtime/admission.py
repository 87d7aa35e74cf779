"""Which requests a model does: those that will be answered soon, and that somebody waits for."""

import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from teran.commandline import from_environment
from teran.contract import BULK_PARAMETER
from teran.errors import TeranError, TeranOverloadedError, TeranTimeoutError
from teran.runtime.load import FEW, UNBATCHED, LoadFile
from teran.runtime.request import id_of, items_of
from teran.runtime.settings import Admission

_LARGEST = 8
"""Items of a request that somebody waits for; larger ones are bulk, whatever they say."""
_BULK_PART = 1 / 3
"""Of the longest wait: by then bulk requests must be done, so that there is room for others."""
FEW_PHOTOS = 8
"""Photos that may be ahead of one that somebody waits for: one alone may take longer than anything
else may wait, and a few callers at once are no overload."""
FEW_BEFORE_BULK = 1
"""Items that may be ahead of bulk, however slow the model is: so it never stands still."""
_OTHERS = 0.5
"""Seconds for which others that have come are expected to come again."""
_BULK_SHARE = 1 / 2
"""Of a model's time: more bulk does not get while others come too."""
EXCESSIVE = 2.0
"""Times the longest wait: what waits so long in a model's queue came past its admission."""
_FEWEST = 8
"""Requests that may be done together, however many wait."""
_REFUSAL = 0.0002
"""Seconds that it takes to refuse a request, at most."""
_WORTH_ASKING = 4
"""Items of one execution, which may have waited, or are much work."""


class DeferredError(TeranOverloadedError):
    """Of bulk that has to come again: that others come first is no sign of too much to do."""


def warm_ups(config: Mapping[str, Any]) -> int:
    """Requests that a model is given to warm up, by its config.

    They come first, and none may be refused: the model would not start, and stay away for as long
    as others are asked for too much.
    """
    samples = config.get("model_warmup", ())
    return sum(max(1, one.get("count", 1)) * max(1, one["batch_size"]) for one in samples)


class Door:
    """Admits requests to the models they need, before anything is done for them."""

    def __init__(self, model: str, spared: int = 0, few: float = FEW) -> None:
        """Admit for a model that requests come to first.

        Args:
            model: which.
            spared: requests that are let in in any case, at first.
            few: items that may be ahead, however slow the models are, while the client has the
                patience. Where one takes longer than anything may wait, it must be as many as
                before bulk at least, or bulk alone gets in.
        """
        self._few = few
        self._load, self._spared = LoadFile(counting=model), spared
        self._longest = from_environment(Admission).max_wait
        self._others_until: dict[str, float] = {}
        """How long others than bulk are expected at a model."""
        self._last_bulk: dict[str, tuple[float, int]] = {}
        """When a model was to begin with the last bulk that was let in, and its items."""

    def admit(
        self,
        request: Any,
        parameters: Mapping[str, Any],
        items: int,
        models: Sequence[str],
        later: Sequence[str] = (),
    ) -> None:
        """Count a request in.

        Args:
            request: Triton's.
            parameters: its own.
            items: how many it has.
            models: those it needs.
            later: those it needs too, but comes to so late that others overtake it; it is not ahead
                of what comes next there.

        Raises:
            TeranOverloadedError: it would wait too long, or longer than its client does.
            DeferredError: it is bulk, and would hold up others.
        """
        if self._spared:
            self._spared -= 1  # nor counted: nothing comes of it behind this model
            return
        patience = request.timeout() / 1e6
        if self._longest:
            limit = min(self._longest, patience) if patience else self._longest
            is_bulk = items > _LARGEST or parameters.get(BULK_PARAMETER) is True
            if not is_bulk:  # those that are refused come again, too
                self._others_until |= dict.fromkeys(models, time.monotonic() + _OTHERS)
            # Ahead of a model is all that was let in for it, what its forerunners have yet too.
            every = (*models, *later)
            for few, most in ((self._few, limit), (FEW, patience or inf)):
                wait = max((self._load.wait(one, few) for one in every), default=0.0)
                if wait > most:
                    raise _overloaded(wait, wait - most / 2)
            if is_bulk:
                self._admit_bulk(models, items)
        if patience:
            self._load.set_deadline(id_of(request), patience)
        self.count(models, items)

    def _admit_bulk(self, models: Sequence[str], items: int) -> None:
        """Let bulk in if it holds nobody up.

        Raises:
            DeferredError: it does.
        """
        now = time.monotonic()
        early = max((self._early(one, items, now) for one in models), default=0.0)
        if early > 0:
            raise DeferredError("others come before what comes in bulk", early)
        for one in models:
            self._last_bulk[one] = now + self._load.wait(one, 0), items

    def _early(self, model: str, items: int, now: float) -> float:
        """Seconds by which bulk comes too early: who comes next waits until all of it is done."""
        wait = self._load.wait(model, FEW_BEFORE_BULK)
        room = _BULK_PART * self._longest - self._load.takes(model, items)
        early = wait - max(room, self._load.takes(model, FEW_BEFORE_BULK)) if wait else 0.0
        begun, done = self._last_bulk.get(model, (now, 0))
        next_bulk = begun + self._load.takes(model, done) / _BULK_SHARE
        return max(early, min(next_bulk, self._others_until.get(model, now)) - now)

    def count(self, models: Sequence[str], items: int) -> None:
        """Count items of admitted requests; negative ones, if they do not come after all."""
        for model in models:
            self._load.admit(model, min(max(items, -1), 1) if model in UNBATCHED else items)


class Desk:
    """Sorts out what a model need not do any more, of the requests that have reached it."""

    def __init__(self, model: str, spared: int = 0) -> None:
        """Sort for a model.

        Args:
            model: which.
            spared: requests that are done in any case, at first.
        """
        self._model, self._load, self._spared = model, LoadFile(counting=model), spared
        self._longest = from_environment(Admission).max_wait
        self._owed = 0.0
        """Seconds of work, for those it took to refuse others."""
        self._load.hold(model, 0)  # whatever a process before had

    def sort(self, requests: Sequence[Any]) -> list[TeranError | None]:
        """Why each request is not done, or None for those that are."""
        self._load.hold(self._model, self._items(requests))
        if self._spared > 0:
            self._spared -= len(requests)
            return [None] * len(requests)
        excess = self._excess(len(requests))
        if excess:
            self._load.refuse(self._model, shed=self._items(requests[:excess]))
        worth_asking = sum(map(items_of, requests)) >= _WORTH_ASKING
        return [
            _overloaded(EXCESSIVE * self._longest, self._longest)
            if i < excess
            else self._gone(request, worth_asking)
            for i, request in enumerate(requests)
        ]

    def clear(self, failed: Sequence[Any]) -> None:
        """Say that nothing is at hand any more, and count what has come, but was not done."""
        self._load.hold(self._model, 0)
        if failed:
            self._load.refuse(self._model, failed=self._items(failed))

    def _excess(self, at_hand: int) -> int:
        """How many requests of those at hand, the oldest, are refused as too much waits."""
        if not self._load.read(self._model).excess:
            return 0
        # No more than one may wait for an item, as a model may seem slower than it is.
        seconds = min(self._load.takes(self._model, 1) or 1.0, self._longest)
        most = max(_FEWEST, int(EXCESSIVE * self._longest / seconds))  # for those behind them
        excess = max(self._load.take_excess(self._model, at_hand), at_hand - most)
        # Something is done all the same, or who can just about refuse all of it would do no more.
        self._owed += excess * _REFUSAL
        done = min(excess, int(self._owed / seconds))
        self._owed -= done * seconds
        return excess - done

    def _items(self, requests: Sequence[Any]) -> int:
        return len(requests) if self._model in UNBATCHED else sum(map(items_of, requests))

    def _gone(self, request: Any, worth_asking: bool) -> TeranError | None:
        # Triton tells of a step in an ensemble never that its caller has gone, and takes 60 us.
        if self._load.is_over(id_of(request)) or (worth_asking and request.is_cancelled()):
            return TeranTimeoutError("nobody waits for this request any more")
        return None


def _overloaded(wait: float, retry_after: float) -> TeranOverloadedError:
    """The error of a request that would wait too long."""
    return TeranOverloadedError(
        f"about {wait:.2f} s of work is waiting already", max(0.001, retry_after)
    )
