"""Galleries under kill -9, full disks and a second owner: nothing acknowledged is ever lost.

TERAN_TEST_KILLS says how many random moments are tried, more for a longer run.
"""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from teran_client import Entry, ImageRegions, TeranClient, TeranError

from teran.cli.background import BackgroundServer, background_server
from teran.errors import GalleryError, ServingError
from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.files import RESERVE
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query
from tests.data import images
from tests.server.test_supervision import children, model_process, wait_for

KILLS = int(os.environ.get("TERAN_TEST_KILLS", "10"))
PICTURES = images(20, seed=3, longest=36)
IDS = 60


class Writer(threading.Thread):
    """Indexes and deletes its own ids, and knows which of them must be there."""

    def __init__(
        self, url: str, name: str, state: dict[str, int | None], doubtful: set[str], timeout: float
    ) -> None:
        super().__init__(name=name)
        self.state = state
        """By id: the value acknowledged last, or None where the deletion was."""
        self.doubtful = {one for one in doubtful if one.startswith(name)}
        """Ids whose last write was never answered."""
        self.written = 0
        self._url, self._timeout, self._stop_now = url, timeout, threading.Event()

    def run(self) -> None:
        dice = random.Random(self.name)
        with TeranClient(self._url, timeout=self._timeout) as client:
            while not self._stop_now.is_set():
                ids = [f"{self.name}-{n}" for n in dice.sample(range(IDS), 3)]
                value = dice.randrange(1_000_000)
                deleting = dice.random() < 0.3
                self.doubtful |= set(ids)
                try:
                    if deleting:
                        client.delete(ids)
                    else:
                        client.index([self.entry(one, value) for one in ids])
                except TeranError:
                    continue
                self.doubtful -= set(ids)
                self.state |= dict.fromkeys(ids, None if deleting else value)
                self.written += len(ids)

    @classmethod
    def entry(cls, identifier: str, value: int) -> Entry:
        return Entry(cls.picture(identifier), identifier, metadata={"v": value})

    @staticmethod
    def picture(identifier: str) -> ImageRegions:
        return PICTURES[int(identifier.split("-")[1]) % len(PICTURES)]

    def finish(self) -> None:
        self._stop_now.set()
        self.join(60)
        assert not self.is_alive()


@contextmanager
def load(
    url: str,
    states: list[dict[str, int | None]],
    doubtful: set[str] | None = None,
    timeout: float = 30,
) -> Iterator[tuple[list[Writer], list[int]]]:
    """Two writers and a searcher, until the block ends."""
    writers = [
        Writer(url, f"w{i}", state, doubtful or set(), timeout) for i, state in enumerate(states)
    ]
    searches, stop = [0], threading.Event()

    def search() -> None:
        with TeranClient(url, timeout=timeout) as client:
            while not stop.is_set():
                try:
                    for hit in client.search("a dog runs", k=100):
                        assert hit.id.startswith("w")
                    searches[0] += 1
                except TeranError:
                    continue

    searcher = threading.Thread(target=search)
    for thread in (*writers, searcher):
        thread.start()
    try:
        yield writers, searches
    finally:
        stop.set()
        for writer in writers:
            writer.finish()
        searcher.join(60)


def more_than(count: list[int], before: int) -> bool:
    return count[0] > before


def check(client: TeranClient, states: list[dict[str, int | None]], doubtful: set[str]) -> None:
    """Everything acknowledged is there, once and whole; nothing else is."""
    hits = client.search("a dog", k=1000, exact=True).hits
    found = {hit.id: hit.metadata["v"] for hit in hits}
    assert len(found) == len(hits) == client.gallery_info("default")["items"]
    expected = {name: value for state in states for name, value in state.items()}
    for name, value in expected.items():
        if name not in doubtful:
            assert found.get(name) == value, name
    assert set(found) <= set(expected) | doubtful
    for name in random.Random(0).sample(sorted(found), min(10, len(found))):
        picture = Writer.picture(name)
        like = client.search_like(name, k=1).hits[0]
        assert like.score_per_word == pytest.approx(1, abs=2e-3), "an image is torn"
        assert Writer.picture(like.id).name == picture.name


def test_killed_gallery_process_loses_nothing(repository: Path, tmp_path: Path) -> None:
    flags = ("--gallery", str(tmp_path / "gallery"), "--check-interval", "1")
    states: list[dict[str, int | None]] = [{}, {}]
    dice = random.Random(1)
    with background_server(repository, *flags, log=tmp_path / "log") as server:
        with TeranClient(server.url) as client:
            client.index([Entry(PICTURES[0], "w0-0", metadata={"v": 0})])
            states[0]["w0-0"] = 0
        with load(server.url, states) as (writers, searches):
            for _ in range(KILLS):
                time.sleep(dice.random())
                moment = searches[0]
                model_process(server, "gallery").kill()
                assert wait_for(lambda: not server.is_ready(), 10)
                assert wait_for(server.is_ready, 30)
                assert wait_for(partial(more_than, searches, moment), 30)
        assert sum(writer.written for writer in writers) > KILLS
        with TeranClient(server.url, timeout=30) as client:
            check(client, states, writers[0].doubtful | writers[1].doubtful)


def test_killed_server_loses_nothing(repository: Path, tmp_path: Path) -> None:
    flags = ("--gallery", str(tmp_path / "gallery"), "--check-interval", "1")
    states: list[dict[str, int | None]] = [{}, {}]
    doubtful: set[str] = set()
    dice = random.Random(2)
    for round_ in range(max(2, KILLS // 5)):
        with background_server(repository, *flags, log=tmp_path / "log") as server:
            with TeranClient(server.url, timeout=30) as client:
                if round_:
                    check(client, states, doubtful)
                else:
                    client.index([Entry(PICTURES[0], "w0-0", metadata={"v": 0})])
                    states[0]["w0-0"] = 0
            with load(server.url, states, doubtful, timeout=5) as (writers, _):
                time.sleep(0.5 + dice.random())
                kill_all(server)
            doubtful = {one for writer in writers for one in writer.doubtful}
    with (
        background_server(repository, *flags, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=30) as client,
    ):
        check(client, states, doubtful)


def kill_all(server: BackgroundServer) -> None:
    for process in (psutil.Process(server.process.pid), *children(server)):
        process.kill()
    server.process.wait()


def test_second_server_on_a_gallery_is_refused(repository: Path, tmp_path: Path) -> None:
    flags = ("--gallery", str(tmp_path / "gallery"))
    log = tmp_path / "second.log"
    with (
        background_server(repository, *flags, log=tmp_path / "log"),
        pytest.raises(ServingError, match="ended with status 1"),
        background_server(repository, *flags, log=log),
    ):
        pass
    assert "is in use by process" in log.read_text()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with little more room than is kept free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = RESERVE + (200 << 20)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_an_error_and_searches_go_on(small_disk: Path) -> None:
    galleries = EmbeddedCatalog(small_disk / "root", Model("a" * 64, 256, "MrSw"), kernel())
    gallery = galleries.get_or_create("default", Kind.IMAGES)
    values = np.random.default_rng(0)
    stored = 0

    def some(count: int) -> list[Item]:
        rows = values.standard_normal((count, 36, 256)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=2, keepdims=True)
        return [Item(f"i{stored + i}", one.astype(np.float16)) for i, one in enumerate(rows)]

    refusal: GalleryError | None = None
    while stored < 20_000 and not refusal:
        try:
            galleries.writer.write(gallery, some(64)).result(30)
            stored += 64
        except GalleryError as error:
            refusal = error
    assert "nothing was written" in str(refusal)
    assert "nearly full" in str(refusal)
    assert stored > 0
    query = np.eye(256, dtype=np.float32)[:5]
    result = gallery.search([Query(query, k=1000, exact=True)], [None])[0]
    assert len(result.hits) == min(stored, 1000)
    assert galleries.writer.write(gallery, deletes=["i0"]).result(30) == 1  # which makes room
    galleries.close()
    again = EmbeddedCatalog(small_disk / "root", Model("a" * 64, 256, "MrSw"), kernel())
    assert len(again.get("default")) == again.get("default").store.count() == stored - 1
    again.close()


def test_group_commits_survive_kills_at_random_moments(tmp_path: Path) -> None:
    """The store alone, in a process that is killed while it acknowledges on its standard output."""
    program = Path(__file__).with_name("writer.py")
    acknowledged: dict[str, int] = {}
    dice = random.Random(3)
    for round_ in range(KILLS):
        command = [sys.executable, str(program), str(tmp_path / "root"), str(round_ * 1_000_000)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        threading.Timer(dice.random() * 0.3, process.kill).start()
        for line in process.stdout:
            if line.endswith("\n"):
                name, value = line.split()
                acknowledged[name] = int(value)
        process.wait()
    galleries = EmbeddedCatalog(tmp_path / "root", Model("a" * 64, 64, "MrSw"), kernel())
    gallery = galleries.get("default")
    there = {one.id: one for one in gallery.store.items()}
    assert acknowledged
    for name, last in acknowledged.items():
        stored = there[name].metadata["v"]
        assert stored >= last, "an acknowledged write is gone"
        np.testing.assert_allclose(
            np.linalg.norm(there[name].rows.astype(np.float32), axis=1), 1, atol=1e-2
        )
    assert len(there) == len(gallery)
    galleries.close()
