"""A good client beside hostile ones, which must neither be slowed down nor see others' results.

It is a process of its own: beside a thread that makes up requests it would wait for that one.
"""

import multiprocessing
import time
from multiprocessing.connection import Connection
from statistics import median

import numpy as np
from teran_client import Entry, SearchResult, TeranClient

from tests.data import images

_ALONE = 200
"""Searches before the others come."""


class Neighbour:
    """It searches all the time, and knows what it has to find."""

    def __init__(self, url: str) -> None:
        spawned = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawned.Pipe()
        self._process = spawned.Process(target=_live, args=(url, theirs), daemon=True)
        self._process.start()
        theirs.close()  # so that its end is heard of
        self._alone: list[float] = self._pipe.recv()
        self._beside: list[float] = []
        self.wrong: list[str] = []

    @property
    def slowdown(self) -> float:
        """How many times as long as alone a search took, by the medians."""
        return round(median(self._beside) / median(self._alone), 2)

    def told(self) -> dict[str, float]:
        """How long its searches took, alone and beside the others, in milliseconds."""
        alone, beside = (1e3 * np.array(times) for times in (self._alone, self._beside))
        return {
            f"neighbours_{name}_{percent}_ms": round(float(np.percentile(times, percent)), 1)
            for name, times in (("alone", alone), ("beside", beside))
            for percent in (50, 99)
        } | {"neighbours_search_times_its_usual": self.slowdown}

    def __enter__(self) -> "Neighbour":
        self._pipe.send("go on")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pipe.send("stop")
            self._beside, self.wrong = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.wrong = [f"it has ended: {error!r}"]
        finally:
            self._pipe.close()
            self._process.join(60)


def _live(url: str, pipe: Connection) -> None:
    wrong: list[str] = []
    with TeranClient(url, timeout=30) as client:

        def find() -> SearchResult:
            return client.search("a dog runs", k=5, gallery="mine")

        photos = images(30, longest=10)
        client.index([Entry(one, f"mine {i}") for i, one in enumerate(photos)], gallery="mine")
        expected = find()

        def timed() -> float:
            started = time.monotonic()
            try:
                found = find()
                if not _same(found, expected):
                    wrong.append(f"found {found}")
            except Exception as error:
                wrong.append(repr(error))
            return time.monotonic() - started

        pipe.send([timed() for _ in range(_ALONE)])
        pipe.recv()
        beside = []
        while not pipe.poll(0.01):
            beside.append(timed())
        pipe.send((beside, wrong))


def _same(found: SearchResult, expected: SearchResult) -> bool:
    """Whether two searches found the same, in the same order and with the same scores."""
    if [hit.id for hit in found.hits] != [hit.id for hit in expected.hits]:
        return False
    scores, wanted = ([hit.score for hit in one.hits] for one in (found, expected))
    return bool(np.allclose(scores, wanted, rtol=1e-4))
