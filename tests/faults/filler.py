"""Does all that takes room, on a disk that has none at the nth call for it, for every n.

filler.py ROOT once|ever

There is none just once, or ever after. Prints for every n how many steps failed. Ends with an error
if anything acknowledged is lost, if a failure is no error of ours, or if nothing can be written
once there is room. A snapshot is copied in very many calls, of which only some are tried.
"""

import ctypes
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from teran.errors import TeranError
from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.gallery import EmbeddedGallery
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query

MODEL = Model("a" * 64, 64, "MrSw")
DENSE = 100
"""Calls up to which every one is tried."""
disk = ctypes.CDLL(None)  # disk.c, which is preloaded


def rows(seed: int) -> npt.NDArray[np.float16]:
    values = np.random.default_rng(seed).standard_normal((12, 64)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values.astype(np.float16)


def found(gallery: EmbeddedGallery) -> set[str]:
    query = Query(rows(0).astype(np.float32), k=100, exact=True)
    points = [hit.point for hit in gallery.search([query], [None])[0].hits]
    return {item.id for item in gallery.items(points).values()}


class Scenario:
    """One round, in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.galleries = EmbeddedCatalog(root, MODEL, kernel(1))
        self.present, self.doubtful = set[str](), set[str]()
        self.snapshots: list[str] = []
        self.write("a", 0)
        self.write("b", 1)

    def gallery(self, name: str = "default") -> EmbeddedGallery:
        gallery = self.galleries.get_or_create(name, Kind.IMAGES)
        assert isinstance(gallery, EmbeddedGallery)
        return gallery

    def write(self, identifier: str, seed: int) -> None:
        self.doubtful.add(identifier)
        item = Item(identifier, rows(seed))
        self.galleries.writer.write(self.gallery(), [item]).result(60)
        self.doubtful.discard(identifier)
        self.present.add(identifier)

    def delete(self, identifier: str) -> None:
        self.doubtful.add(identifier)
        self.galleries.writer.write(self.gallery(), deletes=[identifier]).result(60)
        self.doubtful.discard(identifier)
        self.present.discard(identifier)

    def snapshot(self) -> None:
        self.snapshots.append(self.galleries.snapshot("default"))

    def steps(self) -> list[Callable[[], object]]:
        return [
            partial(self.write, "c", 2),
            partial(self.delete, "a"),
            partial(self.write, "b", 3),
            self.galleries.writer._when_idle,
            partial(self.gallery, "second"),
            partial(self.galleries.set_alias, "alias", "default"),
            self.snapshot,
            self.restore,
            partial(self.galleries.remove_alias, "alias"),
        ]

    def restore(self) -> None:
        if self.snapshots:
            self.galleries.restore(self.snapshots[-1], "restored")

    def check(self) -> None:
        self.compare(found(self.gallery()))

    def compare(self, there: set[str]) -> None:
        assert self.present - self.doubtful <= there <= self.present | self.doubtful, (
            f"{sorted(there)} instead of {sorted(self.present)}, in doubt {sorted(self.doubtful)}"
        )


def attempt(step: Callable[[], object]) -> bool:
    """Whether a step succeeds; it may only fail in our own words."""
    try:
        step()
    except TeranError:
        return False
    return True


def main(root: Path, times: int) -> None:
    full_at, reached = 1, True
    while reached:
        here = root / str(full_at)
        scenario = Scenario(here)
        disk.disk_fill(full_at, times)
        failed = 0
        for step in scenario.steps():
            if step not in (scenario.snapshot, scenario.restore) or disk.disk_calls() < full_at:
                failed += not attempt(step)
                scenario.check()
        reached = disk.disk_calls() >= full_at
        disk.disk_fill(0, 0)
        scenario.write("d", 4)
        scenario.check()
        scenario.galleries.close()
        again = EmbeddedCatalog(here, MODEL, kernel(1))
        assert not again.info()["unusable"], again.info()["unusable"]
        gallery = again.get("default")
        scenario.compare(found(gallery))
        scenario.compare({item.id for item in gallery.store.items()})
        for name in scenario.snapshots:
            again.restore(name, "checked")
            again.drop("checked")
        again.close()
        shutil.rmtree(here)
        print(full_at, failed, flush=True)
        full_at += max(1, (full_at - DENSE) // 2)


main(Path(sys.argv[1]), 1 if sys.argv[2] == "once" else 1 << 30)
