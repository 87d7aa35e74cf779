"""The one thread that writes: what waits is committed together."""

import logging
import queue
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from teran.errors import GalleryBusyError, TeranInputError, TeranOverloadedError
from teran.gallery.item import Item

_LARGEST_COMMIT = 256
"""Items written together."""
_MOST_WAITING = 1024
"""Items that may wait to be written, with all their rows; other jobs count as one."""
_SOON = 1.0
"""Seconds after which there is room for more: until then images would be encoded in vain."""
_IDLE = 0.5
"""Seconds without writes after which there is time to look after the galleries."""
_NUMBER_BITS = 53
"""Of a job's number, which JSON brings everywhere."""
_log = logging.getLogger(__name__)


class Writable(Protocol):
    """A gallery, as the writer sees it."""

    def write(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int: ...


@dataclass
class _Job:
    """Something for the writing thread."""

    future: "Future[Any]"
    gallery: Writable | None = None
    upserts: Sequence[Item] = ()
    deletes: Sequence[str] = ()
    action: Callable[[], Any] | None = None
    size: int = 1
    """Items."""


class Writer:
    """Does jobs one after the other; one long job at a time may run beside searches."""

    def __init__(self, when_idle: Callable[[], None]) -> None:
        """Start the thread; `when_idle` is called in it from time to time."""
        self._when_idle = when_idle
        self._executor = ThreadPoolExecutor(1, "gallery job")
        self._long: Future[Any] | None = None
        self._number = self._waiting = 0
        self._counting = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gallery writer")
        self._thread.start()

    def close(self) -> None:
        """Finish what is under way."""
        self._executor.shutdown()
        self._jobs.put(None)
        self._thread.join()

    def write(
        self, gallery: Writable, upserts: Sequence[Item] = (), deletes: Sequence[str] = ()
    ) -> "Future[int]":
        """Write with whatever else is waiting; the result is the number of items deleted.

        Raises:
            GalleryBusyError: a snapshot is being written or restored.
            TeranOverloadedError: too much is waiting.
        """
        size = len(upserts) + len(deletes)
        return self._submit(_Job(Future(), gallery, upserts, deletes, size=size))

    def run(self, action: Callable[[], Any], size: int = 1) -> "Future[Any]":
        """Run something between two writes, that stands for so many items.

        Raises:
            GalleryBusyError: a snapshot is being written or restored.
            TeranOverloadedError: too much is waiting.
        """
        return self._submit(_Job(Future(), action=action, size=size))

    def start(self, action: Callable[[], Any]) -> "Future[int]":
        """Run something long beside searches, after what was written before.

        Writes are refused meanwhile. The result is its number, known when it begins, which no other
        has, nor had in a process before: who waits for it may not get what is another's.

        Raises:
            GalleryBusyError: something is running already.
            TeranOverloadedError: too much is waiting.
        """
        self._require_room()
        self._number = number = random.SystemRandom().getrandbits(_NUMBER_BITS)
        self._long = long = Future[Any]()

        def begin() -> int:
            try:
                self._executor.submit(_settle, long, action)
            except RuntimeError as error:  # there is no room for a thread
                long.set_exception(error)
                raise
            return number

        job = _Job(Future(), action=begin)
        self._enqueue(job)
        return job.future

    def result(self, number: int) -> Any | None:
        """What came of `start`; None while it runs.

        Raises:
            TeranInputError: there was no such thing in this process, or something else since.
            TeranError: it failed.
        """
        if self._long is None or number != self._number:
            raise TeranInputError(f"there is no job {number}, or no longer; it may have been done")
        return self._long.result() if self._long.done() else None

    @property
    def _is_quiet(self) -> bool:
        return self._long is None or self._long.done()

    def _require_room(self) -> None:
        if not self._is_quiet:
            raise GalleryBusyError("a snapshot is being written or restored; try again soon")
        if self._waiting > _MOST_WAITING:
            raise TeranOverloadedError("too many writes are waiting", _SOON)

    def _submit(self, job: _Job) -> "Future[Any]":
        self._require_room()
        self._enqueue(job)
        return job.future

    def _enqueue(self, job: _Job) -> None:
        size = job.size  # not the job, which would hold itself
        self._count(size)
        job.future.add_done_callback(lambda _: self._count(-size))
        self._jobs.put(job)

    def _count(self, size: int) -> None:
        with self._counting:
            self._waiting += size

    def _work(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                self._rest()
                continue
            jobs, size = [job], job.size if job else 0
            while size < _LARGEST_COMMIT and not self._jobs.empty():
                jobs.append(self._jobs.get())
                size += jobs[-1].size if jobs[-1] else 0
            for group in _groups([job for job in jobs if job]):
                _commit(group)
            if None in jobs:
                return
            if self._jobs.empty():
                self._rest()

    def _rest(self) -> None:
        if self._is_quiet:
            try:
                self._when_idle()
            except Exception:  # the writer must live
                _log.exception("looking after the galleries failed")


def _settle(future: "Future[Any]", action: Callable[[], Any]) -> None:
    try:
        future.set_result(action())
    except BaseException as error:
        future.set_exception(error)


def _groups(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs that can be one commit: upserts of a gallery, up to and with the first deletion."""
    groups: list[list[_Job]] = []
    for job in jobs:
        last = groups[-1] if groups else None
        if last and job.gallery and last[0].gallery is job.gallery and not last[-1].deletes:
            last.append(job)
        else:
            groups.append([job])
    return groups


def _commit(group: Sequence[_Job]) -> None:
    """Do one group's work and tell those who wait for it."""
    first = group[0]
    try:
        if first.action:
            result: Any = first.action()
        else:
            assert first.gallery is not None
            # Of several writes to an id the last one counts.
            latest = {item.id: item for job in group for item in job.upserts}
            result = first.gallery.write(list(latest.values()), group[-1].deletes)
    except BaseException as error:  # a panic in the engine is no Exception; the writer must live
        if len(group) == 1:
            first.future.set_exception(error)
        for job in group if len(group) > 1 else ():  # whoever is to blame fails alone
            _commit([job])
        return
    for job in group:
        job.future.set_result(result if job is group[-1] else 0)
