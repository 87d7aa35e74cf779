"""Who is let in, by what waits already."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from teran.contract import BULK_PARAMETER
from teran.errors import TeranOverloadedError, TeranTimeoutError
from teran.runtime.admission import FEW_PHOTOS, DeferredError, Desk, Door, warm_ups
from teran.runtime.environment import LOAD_FILE_VARIABLE
from teran.runtime.load import Load, LoadFile, Refused
from teran.runtime.metrics import (
    DEFERRED_REQUESTS,
    OVERLOADED_REQUESTS,
    Recorder,
    read_recorded,
    values_of,
)


@dataclass
class Request:
    """What is asked of Triton's."""

    seconds: float = 0
    id: str = "a"
    cancelled: bool = False
    items: int = 1

    def inputs(self) -> "list[Request]":
        return [self]

    def shape(self) -> list[int]:
        return [self.items, 16]

    def timeout(self) -> int:
        return int(1e6 * self.seconds)

    def request_id(self) -> str:
        return self.id

    def is_cancelled(self) -> bool:
        return self.cancelled


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadFile:
    LoadFile.create(tmp_path / "load")
    monkeypatch.setenv(LOAD_FILE_VARIABLE, str(tmp_path / "load"))
    monkeypatch.setenv("TERAN_MAX_WAIT", "1")
    return LoadFile()


def waiting(file: LoadFile, model: str, wait: float, seconds: float = 0.01) -> None:
    at = time.monotonic() + 10  # it does not get less during a test
    file.write(model, Load(at, (wait - 10) / seconds, file.admitted(model), seconds))


def admitted(door: Door, request: Request, items: int = 1, *, bulk: bool = False) -> bool:
    try:
        door.admit(request, {BULK_PARAMETER: bulk}, items, ["textual_encoder", "gallery"])
    except TeranOverloadedError as error:
        return error.retry_after <= 0  # which nobody may be told
    return True


@pytest.mark.parametrize("model", ["textual_encoder", "gallery"])
def test_searches_come_before_bulk(file: LoadFile, model: str) -> None:
    for wait, small, large in ((0.2, True, True), (0.5, True, False), (1.1, False, False)):
        waiting(file, model, wait)
        assert admitted(Door("tokenizer"), Request()) is small
        assert admitted(Door("tokenizer"), Request(), bulk=True) is large
        assert admitted(Door("tokenizer"), Request(), items=9) is large


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.1])
@pytest.mark.parametrize("items", [1, 4, 64])
def test_bulk_leaves_room_for_others(file: LoadFile, items: int, seconds: float) -> None:
    door = Door("tokenizer")
    file.write("textual_encoder", Load(time.monotonic(), seconds=seconds))
    while admitted(door, Request(), items, bulk=True):
        pass
    ahead = file.wait("textual_encoder", 0)
    assert 0.9 * items * seconds < ahead < max((items + 1) * seconds, 1 / 3) + 0.05
    assert admitted(door, Request()) is (ahead < 1 or items < 8)


@pytest.mark.parametrize(("items", "seconds"), [(1, 0.01), (4, 0.01), (64, 0.01), (2, 0.3)])
def test_bulk_comes_again_when_it_is_let_in(file: LoadFile, items: int, seconds: float) -> None:
    waiting(file, "textual_encoder", 0.9, seconds)
    with pytest.raises(DeferredError) as caught:
        Door("tokenizer").admit(Request(), {BULK_PARAMETER: True}, items, ["textual_encoder"])
    for part, expected in ((0.9, False), (1.05, True)):
        waiting(file, "textual_encoder", 0.9 - part * caught.value.retry_after, seconds)
        assert admitted(Door("tokenizer"), Request(), items, bulk=True) is expected


def test_bulk_gets_half_of_a_models_time_while_others_come(
    file: LoadFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file.write("textual_encoder", Load(now, seconds=0.01))
    door, done, begun = Door("tokenizer"), 0, now
    while now < begun + 3:  # 20 searches and 20 times more bulk a second than there is time for
        assert admitted(door, Request())
        for _ in range(10):
            done += 2 * admitted(door, Request(), 2, bulk=True)
            now += 0.005
    assert 0.4 * 3 < 0.01 * done < 0.55 * 3

    now += 2  # nobody else comes any more, so there is no need to hold back
    assert sum(admitted(door, Request(), 2, bulk=True) for _ in range(100)) > 10


def test_bulk_is_put_off_no_longer_than_others_are_expected(
    file: LoadFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the model is known to take now, however slow it seemed to be."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    door = Door("tokenizer")
    file.write("textual_encoder", Load(now, seconds=1))
    assert admitted(door, Request(), 64, bulk=True)
    file.write("textual_encoder", Load(now, 0, file.admitted("textual_encoder"), seconds=1))
    assert admitted(door, Request())
    with pytest.raises(DeferredError) as caught:
        door.admit(Request(), {}, 64, ["textual_encoder"])
    assert 0 < caught.value.retry_after <= 0.5
    now += 1.5
    assert admitted(door, Request())
    assert not admitted(door, Request(), 2, bulk=True)
    file.write("textual_encoder", Load(now, 0, file.admitted("textual_encoder"), seconds=0.01))
    assert admitted(door, Request(), 2, bulk=True)


def test_bulk_that_gives_way_is_no_overload(tmp_path: Path) -> None:
    recorder = Recorder("tokenizer", tmp_path)
    recorder.execution(0, [DeferredError("later", 0.1), TeranOverloadedError("full")], 0.1)
    totals = read_recorded(tmp_path)["tokenizer"]
    assert values_of(DEFERRED_REQUESTS, totals) == values_of(OVERLOADED_REQUESTS, totals) == [1]


def test_what_is_let_in_is_ahead_of_what_comes_next(file: LoadFile) -> None:
    door = Door("tokenizer")
    waiting(file, "gallery", 0.9)
    let_in = sum(admitted(door, Request()) for _ in range(50))
    assert 8 <= let_in <= 12  # a tenth of a second, of a hundredth each
    door.count(["gallery"], -let_in)
    assert admitted(door, Request())


def test_nobody_is_let_in_whose_client_will_not_wait(file: LoadFile) -> None:
    door = Door("tokenizer")
    waiting(file, "gallery", 0.5)
    assert not admitted(door, Request(seconds=0.3))
    assert admitted(door, Request(seconds=0.7))


def test_without_a_limit_all_come_in(file: LoadFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAN_MAX_WAIT", "0")
    waiting(file, "gallery", 100)
    assert admitted(Door("tokenizer"), Request(), bulk=True)


def test_what_nobody_waits_for_is_not_done() -> None:
    door, desk = Door("tokenizer"), Desk("textual_encoder")
    door.admit(Request(0.01, "0" * 16), {}, 1, ["textual_encoder"])
    door.admit(Request(60, "1" * 16), {}, 1, ["textual_encoder"])
    time.sleep(0.02)
    over, fine = desk.sort([Request(id="0" * 16), Request(id="1" * 16)])
    assert isinstance(over, TeranTimeoutError)
    assert fine is None
    queue = [Request(id=str(i), cancelled=i == 2) for i in range(5)]
    assert [one is not None for one in desk.sort(queue)] == [False, False, True, False, False]
    (large,) = desk.sort([Request(id="large", cancelled=True, items=32)])
    assert isinstance(large, TeranTimeoutError), "it is worth asking"


def test_the_oldest_go_where_too_many_came_past_the_door(file: LoadFile) -> None:
    file.write("gallery", Load(excess=2, number=1))
    verdicts = Desk("gallery").sort([Request() for _ in range(5)])
    assert [type(one) for one in verdicts] == [TeranOverloadedError] * 2 + [type(None)] * 3


@pytest.mark.parametrize(("seconds", "least"), [(0.001, 1600), (0.01, 160), (1000, 1)])
def test_who_can_just_about_refuse_does_something(
    file: LoadFile, seconds: float, least: int
) -> None:
    """However slow it seems to be, or one that hung for a while would never do anything."""
    desk, done = Desk("gallery"), 0
    for number in range(1, 1001):
        file.write("gallery", Load(seconds=seconds, excess=1000, number=number))
        done += desk.sort([Request() for _ in range(8)]).count(None)
    assert least <= done < 1.3 * least + 1


def test_warming_up_is_never_refused(file: LoadFile) -> None:
    """A model that takes the place of one that died under a flood would not start otherwise."""
    config = {"model_warmup": [{"batch_size": 2}, {"batch_size": 0, "count": 3}]}
    door, desk = Door("tokenizer", warm_ups(config)), Desk("gallery", warm_ups(config))
    waiting(file, "gallery", 60)
    file.write("gallery", Load(time.monotonic(), excess=100, number=1))
    verdicts = [error for size in (2, 1, 1, 1) for error in desk.sort([Request()] * size)]
    assert verdicts == [None] * 5
    assert isinstance(desk.sort([Request()])[0], TeranOverloadedError)
    waiting(file, "gallery", 60)
    assert [admitted(door, Request()) for _ in range(6)] == [True] * 5 + [False]
    assert admitted(Door("tokenizer", warm_ups({})), Request()) is False


def test_no_more_is_done_together_than_may_wait(file: LoadFile) -> None:
    requests = [Request() for _ in range(64)]
    for number, (seconds, done) in enumerate(((0.01, 64), (0.1, 20), (10, 8)), start=1):
        file.write("gallery", Load(seconds=seconds, number=number))
        assert Desk("gallery").sort(requests) == [None] * 64, "nothing waits behind them"
        file.write("gallery", Load(seconds=seconds, excess=1, number=number))
        desk = Desk("gallery")
        desk._load.take_excess("gallery", 1)
        verdicts = desk.sort(requests)
        assert verdicts[64 - done :] == [None] * done, "the newest"
        assert all(isinstance(one, TeranOverloadedError) for one in verdicts[: 64 - done])


def test_what_is_refused_is_counted(file: LoadFile) -> None:
    for model, items in (("gallery", 3), ("alignment", 1)):  # which Triton counts as one
        file.write(model, Load(excess=1, number=1))
        requests = [Request(items=3), Request(items=3)]
        verdicts = Desk(model).sort(requests)
        assert [verdict is None for verdict in verdicts] == [False, True]
        Desk(model).clear(requests)
        assert file.refused(model) == Refused(failed=2 * items, shed=items)


def test_a_few_photos_may_wait_though_one_takes_longer_than_anything_may(file: LoadFile) -> None:
    for model in ("textual_encoder", "gallery"):
        file.write(model, Load(time.monotonic(), 0.95, file.admitted(model), seconds=3.0))
    assert not admitted(Door("tokenizer"), Request())
    door = Door("photo", few=FEW_PHOTOS)
    assert sum(admitted(door, Request()) for _ in range(20)) == FEW_PHOTOS
    assert not admitted(door, Request(), bulk=True)


def test_no_photo_waits_for_longer_than_its_caller(file: LoadFile) -> None:
    for model in ("textual_encoder", "gallery"):
        file.write(model, Load(time.monotonic(), 1.0, file.admitted(model), seconds=3.0))
    door = Door("photo", few=FEW_PHOTOS)
    assert not admitted(door, Request(seconds=2))
    assert admitted(door, Request(seconds=5))
    assert not admitted(door, Request(seconds=5)), "behind two others"


def test_bulk_makes_way_for_who_was_refused(file: LoadFile) -> None:
    """And will come again."""
    for model in ("textual_encoder", "gallery"):
        file.write(model, Load(time.monotonic(), 0.0, file.admitted(model), seconds=0.4))
    door = Door("tokenizer")
    assert admitted(door, Request(), bulk=True)
    for model in ("textual_encoder", "gallery"):
        file.write(model, Load(time.monotonic(), 9.0, file.admitted(model), seconds=0.4))
    assert not admitted(door, Request())
    for model in ("textual_encoder", "gallery"):
        file.write(model, Load(time.monotonic(), 0.0, file.admitted(model), seconds=0.4))
    assert not admitted(door, Request(), bulk=True)
