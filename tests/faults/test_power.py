"""Galleries after a loss of power: what was acknowledged is there, and nothing else is.

TERAN_TEST_KILLS says how many random moments are tried, more for a longer run.
"""

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import pytest

from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.query import Query
from tests.faults import disk

CUTS = int(os.environ.get("TERAN_TEST_KILLS", "10")) // 5
PROGRAMS = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disk.build(tmp_path_factory.mktemp("disk"))


def run_until(
    seconds: float, library: Path, root: Path, program: str, *arguments: str
) -> list[str]:
    """Kill a program some time after its first words, and return them all."""
    command = [sys.executable, str(PROGRAMS / program), str(root), *arguments]
    environment = disk.environment(library, root, root.with_name("shadow"))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lines = [process.stdout.readline()[:-1]]
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    lines += [line[:-1] for line in process.stdout if line.endswith("\n")]
    timer.cancel()
    assert process.wait() == -signal.SIGKILL, "it ended by itself"
    return lines


def left(library: Path, root: Path, outcome: str, seed: int) -> Path:
    """What may be left of a directory."""
    target = root.with_name(outcome.replace(" ", "-"))
    choices = disk.OUTCOMES[outcome](seed)
    disk.PowerCut(library, root, root.with_name("shadow"), *choices).leave(target)
    return target


def opened(root: Path) -> AbstractContextManager[EmbeddedCatalog]:
    return closing(EmbeddedCatalog(root, Model("a" * 64, 64, "MrSw"), kernel(1)))


def check(galleries: EmbeddedCatalog, required: dict[str, int]) -> None:
    """What was required is there, and all that is there is whole."""
    gallery = galleries.get("default")
    there = {one.id: one for one in gallery.store.items()}
    assert len(there) == len(gallery) == gallery.store.count()
    for name, value in required.items():
        assert name in there, f"{name} is lost"
        assert there[name].metadata["v"] >= value, f"{name} is older than what was acknowledged"
    for name, one in there.items():
        rows = one.rows.astype(np.float32)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-2, err_msg=name)
    for name in random.Random(0).sample(sorted(there), min(20, len(there))):
        query = Query(gallery.rows_of(name), k=1, exact=True)
        (hit,) = gallery.search([query], [None])[0].hits
        assert hit.point == there[name].point, f"{name} is not found"
    again = [*sorted(there)[:5], "quite new"]
    new = np.eye(36, 64).astype(np.float16)
    items = [Item(name, new, metadata={"v": -1}) for name in again]
    galleries.writer.write(gallery, items).result(60)
    there = {one.id: one for one in gallery.store.items()}
    assert [name for name in again if there[name].metadata["v"] != -1] == [], "not written anew"


def test_power_is_lost_while_items_are_written(library: Path, tmp_path: Path) -> None:
    dice = random.Random(1)
    for cut in range(CUTS):
        root = tmp_path / str(cut) / "root"
        root.mkdir(parents=True)
        acknowledged = run_until(dice.random() * 4, library, root, "writer.py", str(cut))
        required = {name: int(value) for name, value in map(str.split, acknowledged)}
        for outcome in disk.OUTCOMES:
            with opened(left(library, root, outcome, cut)) as galleries:
                assert not galleries.info()["unusable"], outcome
                check(galleries, required)


def test_a_deleted_item_does_not_come_back_in_the_place_of_a_new_one(
    library: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert run_until(0, library, root, "rewriter.py") == ["stored"]
    for outcome in disk.OUTCOMES:
        with opened(left(library, root, outcome, 0)) as galleries:
            gallery = galleries.get("default")
            new = np.eye(36, 64, k=28, dtype=np.float16)  # as rewriter.py has it
            np.testing.assert_array_equal(gallery.rows_of("again"), new, err_msg=outcome)
            check(galleries, {})


def test_power_is_lost_while_room_is_given_back(library: Path, tmp_path: Path) -> None:
    """At moments all over it, and at each of the last, in which the stores change places."""
    names = {f"i{i}" for i in range(60)}

    def cut_at(step: int) -> list[str]:
        root = tmp_path / str(step) / "root"
        root.mkdir(parents=True)
        said = run_until(60, library, root, "vacuum.py", str(step))
        for outcome in disk.OUTCOMES:
            with opened(left(library, root, outcome, step)) as galleries:
                assert not galleries.info()["unusable"], (step, outcome)
                there = {one.id for one in galleries.get("default").store.items()}
                assert there == names, (step, outcome)
                check(galleries, {f"i{i}": i for i in range(60)})
        return said

    _, steps = cut_at(0)
    last = range(int(steps) - 5, int(steps) + 1)
    for step in {*range(1, last[0], int(steps) // CUTS), *last}:
        assert cut_at(step) == ["made"], step


def test_power_is_lost_while_galleries_are_managed(library: Path, tmp_path: Path) -> None:
    dice = random.Random(2)
    for cut in range(CUTS):
        root = tmp_path / str(cut) / "root"
        root.mkdir(parents=True)
        said = run_until(0.2 + dice.random() * 3, library, root, "manager.py")
        names: dict[str, list[str]] = {"made": [], "dropped": [], "alias": [], "snapshot": []}
        for line in said:
            what, name, *_ = line.split()
            names[what].append(name)
        made, dropped, snapshots = names["made"], names["dropped"], names["snapshot"]
        newest = max(int(name[1:]) for name in made)
        doubtful = f"r{newest - 2}"  # what is dropped last, which may not have been said
        for outcome in disk.OUTCOMES:
            target = left(library, root, outcome, cut)
            with opened(target) as galleries:
                info = galleries.info()
                there = {one["name"]: one["items"] for one in info["galleries"]}
                assert not info["unusable"], outcome
                for name in {*made} - {*dropped, doubtful}:
                    assert there[name] == 2, (outcome, name)
                assert not there.keys() & {*dropped}, outcome
                if names["alias"]:
                    current = int(info["aliases"]["current"][1:])
                    assert current >= int(names["alias"][-1][1:]), outcome
                for name in snapshots:
                    assert (target / "snapshots" / name).is_file(), outcome
                    galleries.restore(name, "again")
                    assert len(galleries.get("again")) == 2
                    galleries.drop("again")
