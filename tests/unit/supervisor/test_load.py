"""What is made of Triton's counts."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teran.runtime.load import Load, LoadFile
from teran.supervisor.load import Counts, ModelLoad, read_counts

STEP = 0.05
METRICS = """
# HELP nv_inference_count Number of inferences performed
nv_inference_count{model="gallery",version="1"} 12
nv_inference_request_success{model="gallery",version="1"} 7
nv_inference_pending_request_count{model="gallery",version="1"} 3
nv_inference_pending_request_count{model="search",version="1"} 0
nv_inference_count{gpu_uuid="GPU-1",model="visual_encoder",version="1"} 5
nv_inference_count{gpu_uuid="GPU-2",model="visual_encoder",version="1"} 6
"""


def test_counts_are_read_from_metrics() -> None:
    counts = read_counts(METRICS)
    assert counts["gallery"] == Counts(pending=3, items=12, requests=7)
    assert counts["nowhere"] == Counts()
    assert counts["visual_encoder"].items == 11


class Server:
    """A model that does so many items a second, of those that are let in."""

    def __init__(self, seconds: float, max_wait: float = 0.1) -> None:
        self.load, self.seconds, self.max_wait = ModelLoad(), seconds, max_wait
        self.now, self.admitted, self.came = 100.0, 0.0, 0.0
        self.gone = 0.0
        """Done or refused."""

    def step(self, items: float = 0, past: float = 0, lost: float = 0) -> Load:
        """Let items in, some past the door; some of those let in never come."""
        self.admitted += items
        self.came += items + past - lost
        self.gone = min(self.came, self.gone + STEP / self.seconds)
        left = self.came - self.gone
        self.now += STEP
        counts = Counts(max(0, left - 1), self.gone, self.gone)
        return self.load.look(
            counts, self.admitted, self.now, self.max_wait, quiet=not counts.pending
        )


def test_the_speed_is_learnt_at_full_work_only() -> None:
    server = Server(0.005, max_wait=0)
    for _ in range(20):
        idle = server.step(2)  # of ten that it could do
    assert idle.seconds == 0
    for _ in range(20):
        busy = server.step(20)
    assert busy.seconds == pytest.approx(0.005, rel=0.1)
    assert busy.items == pytest.approx(server.came - server.gone)


def test_a_slow_model_shows_its_speed_with_few_items_left() -> None:
    """For more are not let in: they would be answered too late."""
    server = Server(0.05)
    server.step()
    server.step(4)
    for _ in range(40):
        load = server.step(1)
    assert load.items == 3
    assert load.seconds == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("known", [False, True])
def test_bursts_make_no_model_slow(size: int, known: bool) -> None:
    """A batch counts at its end: until then nothing is seen of it."""
    server = Server(0.008)
    for _ in range(40 * known):
        server.step(20)
    done = server.gone = server.came
    for _ in range(400):
        for came, went in ((size, 0), (0, 1), (0, size - 1), *[(0, 0)] * 7):
            server.admitted += came
            server.now, done = server.now + STEP, done + went
            counts = Counts(0, done, done)
            load = server.load.look(counts, server.admitted, server.now, 0.07, quiet=True)
    assert load.seconds < 0.02


def test_a_speed_that_was_misjudged_is_seen_to_be_better() -> None:
    server = Server(5.0)  # it hung for a while
    for _ in range(60):
        slow = server.step(1)
    assert slow.seconds > 1
    server.seconds = 0.005
    server.gone = server.came
    for _ in range(40):
        fast = server.step(5)  # not enough to have any wait
    assert fast.seconds < 0.02


def test_a_model_that_was_dead_for_a_while_is_as_fast_as_before() -> None:
    server = Server(0.005)
    for _ in range(40):
        server.step(20)
    alive = server.step(20)
    server.seconds = float("inf")
    for _ in range(600):
        server.step()
    server.gone = server.came = 0  # Triton counts a process anew
    server.seconds = 0.005
    assert server.step().seconds == pytest.approx(alive.seconds)
    assert server.step(20).seconds == pytest.approx(alive.seconds)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10)), max_size=40))
def test_what_fails_or_comes_past_the_door_is_forgotten(steps: list[tuple[int, int, int]]) -> None:
    server = Server(0.005)
    for items, past, lost in steps:
        load = server.step(items, past, min(lost, items))
        left = max(0.0, server.came - server.gone - 1)
        assert left <= load.items + load.excess + 1e-6
        assert load.items <= (left + 1) * 64
    for _ in range(200):
        load = server.step()
    assert load.items == 0
    assert server.step(8).items == pytest.approx(server.came - server.gone)


def test_a_new_server_begins_with_nothing() -> None:
    server = Server(0.005)
    for _ in range(10):
        server.step(20)
    server.gone = server.came = 0
    assert server.step().items == 0


def test_only_what_waits_too_long_is_shed() -> None:
    server = Server(0.005)
    loads = [server.step(past=10) for _ in range(20)]  # as much as it can do
    assert not any(load.excess for load in loads)
    loads = [server.step(past=30) for _ in range(20)]
    assert loads[-1].excess == pytest.approx(server.came - server.gone - 1 - 0.2 / 0.005, abs=5)
    numbers = [load.number for load in loads]
    assert all(b == a + 1 for a, b in itertools.pairwise(numbers))
    unlimited = Server(0.005, max_wait=0)
    assert not any(unlimited.step(past=30).excess for _ in range(20))


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_refused_makes_no_model_fast(size: int) -> None:
    """Nor is what will be refused waited for, as if it had to be done."""
    load, came, gone, refused, excess = ModelLoad(), 0.0, 0.0, 0.0, 0.0
    for look in range(1, 400):
        came += 50 * size  # of which it can do ten items, in requests of so many
        shed = size * min(64, excess)
        refused += shed
        gone += shed + 10
        late = shed if look % 3 else 0  # Triton counts it a moment later
        counts = Counts((came - gone) / size, gone - late, (gone - late) / size)
        seen = load.look(counts, 0, STEP * look, 0.1, quiet=False, shed=refused)
        excess = seen.excess
    assert seen.seconds == pytest.approx(STEP / 10, rel=0.1)
    assert seen.excess == pytest.approx(50 - 10 / size, abs=5)
    assert seen.items == pytest.approx(max(16, 40 / size), rel=0.2)


def test_what_never_comes_is_forgotten_under_steady_traffic() -> None:
    server = Server(0.01)
    for _ in range(600):
        load = server.step(3, lost=1)
    assert load.items < 45  # of 600 that were lost


def test_the_last_of_a_row_is_as_fast_as_the_row() -> None:
    """What waits before its forerunners waits for it too, though its own queue is short."""
    load, done = ModelLoad(), 0.0
    load.look(Counts(), 0, STEP, 0.1, quiet=True)
    for look in range(2, 200):
        done += (0, 10, 10, 0)[look % 4]
        counts = Counts((5, 5, 0, 0)[look % 4], done, done)
        seen = load.look(counts, done + 30, STEP * look, 0.1, quiet=False)
    assert seen.seconds == pytest.approx(0.01, rel=0.1)
    assert seen.items == pytest.approx(30)


def test_what_its_forerunners_fail_at_makes_no_model_slow() -> None:
    load, seen = ModelLoad(), Load()
    for look in range(400):
        done, lost = 10.0 * look, 30.0 * max(0, look - 100)  # three of four fail after a while
        counts = Counts(20, done, done)
        seen = load.look(counts, done + lost + 30, STEP * look, 0.1, quiet=False, lost=lost)
    assert seen.seconds == pytest.approx(STEP / 10, rel=0.1)
    assert 20 <= seen.items <= 30


def test_what_came_since_the_last_look_is_left_however_long_ago_that_was() -> None:
    load = ModelLoad()
    load.look(Counts(), 0, 0, 0.1, quiet=True)
    seen = load.look(Counts(pending=5), 40, 60, 0.1, quiet=False)  # requests of eight
    assert seen.items == 40


def test_what_is_lost_before_a_row_that_always_waits_is_forgotten() -> None:
    load, seen = ModelLoad(), Load()
    load.look(Counts(), 0, 0, 0.1, quiet=True)
    for look in range(1, 400):
        done = 5.0 * look
        admitted = done + 30 + (50 if look > 100 else 0)  # 50 that never come
        seen = load.look(Counts(0, done, done), admitted, STEP * look, 0.1, quiet=False)
        assert seen.items >= 30
    for look in range(400, 450):  # nothing is let in any more, as there seems to be too much
        seen = load.look(Counts(0, done, done), admitted, STEP * look, 0.1, quiet=False)
    assert seen.items == 0


@pytest.mark.parametrize(
    ("latency", "at_once", "rate", "most"),
    [(0.05, 1, 60, 20), (0.1, 1, 30, 10), (0.1, 100, 200, 200), (0.2, 100, 100, 100)],
)
def test_models_are_kept_at_work_and_answers_in_time(
    latency: float, at_once: int, rate: int, most: int,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Slow ones, and those that do many things at once, as a cluster does, however long."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("teran.runtime.load.time", SimpleNamespace(monotonic=lambda: clock.now))
    LoadFile.create(tmp_path / "load")
    file, load = LoadFile(tmp_path / "load", counting="tokenizer"), ModelLoad()
    queue: list[float] = []
    running: list[tuple[float, float]] = []
    done: list[tuple[float, float]] = []
    for step in range(4000):
        clock.now += 0.005
        if step > 10 and step % round(200 / rate) == 0 and file.wait("gallery") <= 0.07:
            file.admit("gallery", 1)
            queue.append(clock.now)
        done += [(clock.now, clock.now - came) for came, ends in running if ends <= clock.now]
        running = [one for one in running if one[1] > clock.now]
        while queue and len(running) < at_once:
            running.append((queue.pop(0), clock.now + latency))
        if step % 10 == 0:
            count = len(done)
            counts = Counts(len(queue), count, count, count, latency * count)
            seen = load.look(
                counts, file.admitted("gallery"), clock.now, 0.07, quiet=not queue,
                in_sight=len(queue) + len(running), held=len(running),
            )  # fmt: skip
            file.write("gallery", replace(seen, latency=load.latency))
    late = [took for at, took in done if at > clock.now - 10]
    assert len(late) / 10 > 0.85 * most
    assert np.quantile(late, 0.9) < latency + 0.12
