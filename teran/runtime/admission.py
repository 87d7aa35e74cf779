"""Which requests a model does: those that will be answered soon, and that somebody waits for."""

from collections.abc import Mapping, Sequence
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
EXCESSIVE = 2.0
"""Times the longest wait: what waits so long in a model's queue came past its admission."""


_QUEUE = 4
"""Requests in one execution, which tell that they had to wait for it."""


def warm_ups(config: Mapping[str, Any]) -> int:
    """Requests that a model is given to warm up, by its config.

    They come first, and none may be refused: the model would not start, and stay away for as long
    as others are asked for too much.
    """
    samples = config.get("model_warmup", ())
    return sum(max(1, one.get("count", 1)) * max(1, one["batch_size"]) for one in samples)


class Door:
    """Admits requests to the models they need, before anything is done for them."""

    def __init__(self, model: str, spared: int = 0) -> None:
        """Admit for a model that requests come to first.

        Args:
            model: which.
            spared: requests that are let in in any case, at first.
        """
        self._load, self._spared = LoadFile(counting=model), spared
        self._longest = from_environment(Admission).max_wait

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
        """
        if self._spared:
            self._spared -= 1  # nor counted: nothing comes of it behind this model
            return
        patience = request.timeout() / 1e6
        if self._longest:
            bulk = items > _LARGEST or parameters.get(BULK_PARAMETER) is True
            longest = self._longest * (_BULK_PART if bulk else 1)
            limit = min(longest, patience) if patience else longest
            # Ahead of a model is all that was let in for it, what its forerunners have yet too.
            few = min(items, FEW) if bulk else FEW
            wait = max((self._load.wait(one, few) for one in (*models, *later)), default=0.0)
            # Others wait until all of a bulk request is done; where nobody is ahead, it may begin.
            takes = max(self._load.takes(one, items) for one in models) if bulk and wait else 0.0
            if wait + takes > limit:
                room = max(0.0, limit - takes) if bulk else limit / 2
                raise _overloaded(wait, wait - room)
        if patience:
            self._load.set_deadline(id_of(request), patience)
        self.count(models, items)

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

    def sort(self, requests: Sequence[Any]) -> list[TeranError | None]:
        """Why each request is not done, or None for those that are."""
        if self._spared > 0:
            self._spared -= len(requests)
            return [None] * len(requests)
        excess = self._load.take_excess(self._model, len(requests))
        had_to_wait = len(requests) >= _QUEUE
        return [
            _overloaded(EXCESSIVE * self._longest, self._longest)
            if i < excess
            else self._gone(request, had_to_wait)
            for i, request in enumerate(requests)
        ]

    def write_off(self, failed: Sequence[Any]) -> None:
        """Count requests that have come, but are not done."""
        items = len(failed) if self._model in UNBATCHED else sum(map(items_of, failed))
        self._load.admit(self._model, -items)

    def _gone(self, request: Any, had_to_wait: bool) -> TeranError | None:
        # Triton tells of a step in an ensemble never that its caller has gone, and takes 60 us.
        if self._load.is_over(id_of(request)) or (had_to_wait and request.is_cancelled()):
            return TeranTimeoutError("nobody waits for this request any more")
        return None


def _overloaded(wait: float, retry_after: float) -> TeranOverloadedError:
    """The error of a request that would wait too long."""
    return TeranOverloadedError(
        f"about {wait:.2f} s of work is waiting already", max(0.001, retry_after)
    )
