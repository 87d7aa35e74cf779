"""What the load file tells about work that waits."""

import time
from pathlib import Path

import pytest

from teran.runtime.load import _RECORD, MODELS, Load, LoadFile, Refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    LoadFile.create(tmp_path / "load")
    return tmp_path / "load"


def test_the_wait_is_what_is_left_and_what_came_since(path: Path) -> None:
    supervisor, tokenizer = LoadFile(path), LoadFile(path, "tokenizer")
    admission, other = LoadFile(path, "admission"), LoadFile(path)
    assert other.wait("gallery") == 0
    tokenizer.admit("gallery", 7)  # before the measurement, which knows of it
    seen = Load(time.monotonic(), items=20, admitted=supervisor.admitted("gallery"), seconds=0.1)
    supervisor.write("gallery", seen)
    assert other.wait("gallery") == pytest.approx(2, abs=0.05)
    tokenizer.admit("gallery", 10)
    admission.admit("gallery", 5)
    assert other.wait("gallery") == pytest.approx(3.5, abs=0.05)
    tokenizer.admit("gallery", -10)
    assert other.wait("gallery") == pytest.approx(2.5, abs=0.05)
    assert other.wait("visual_encoder") == 0


def test_what_should_be_done_by_now_is_not_waited_for(path: Path) -> None:
    file = LoadFile(path)
    file.write("gallery", Load(time.monotonic() - 1, items=40, seconds=0.1))
    assert file.wait("gallery") == pytest.approx(3, abs=0.05)
    file.write("gallery", Load(time.monotonic() - 5, items=20, seconds=0.1))
    assert file.wait("gallery") == 0


def test_half_an_item_may_always_be_ahead(path: Path) -> None:
    """Or a speed that was once misjudged could never be seen to be better."""
    file = LoadFile(path)
    file.write("gallery", Load(time.monotonic() - 550, items=1, seconds=1000))
    assert file.wait("gallery") == 0


def test_no_more_is_ahead_where_it_takes_long(path: Path) -> None:
    file = LoadFile(path)
    file.write("gallery", Load(time.monotonic(), items=1, seconds=50))
    assert file.wait("gallery") == pytest.approx(50, abs=5)


def test_what_is_done_beside_others_does_not_wait_for_them(path: Path) -> None:
    file = LoadFile(path)
    file.write("gallery", Load(time.monotonic(), items=30, seconds=0.01, latency=0.25))
    assert file.wait("gallery") == pytest.approx(0.3 - 0.24, abs=0.05)


def test_what_was_refused_is_counted_on_by_the_next_process(path: Path) -> None:
    LoadFile(path).refuse("gallery", failed=3)
    LoadFile(path).refuse("gallery", failed=1, shed=2)
    assert LoadFile(path).refused("gallery") == Refused(failed=4, shed=2)
    assert LoadFile(path).refused("tokenizer") == Refused()


def test_an_excess_is_shed_once(path: Path) -> None:
    file = LoadFile(path)
    file.write("gallery", Load(excess=5, number=1))
    assert [file.take_excess("gallery", 3) for _ in range(3)] == [3, 2, 0]
    file.write("gallery", Load(excess=1, number=2))
    assert [file.take_excess("gallery", 3) for _ in range(2)] == [1, 0]


def test_a_deadline_is_known_to_all(path: Path) -> None:
    first, second = LoadFile(path, "tokenizer"), LoadFile(path)
    short, long = "0123456789abcdef", "fedcba9876543210"
    first.set_deadline(short, 0.05)
    first.set_deadline(long, 60)
    assert not second.is_over(short)
    time.sleep(0.06)
    assert second.is_over(short)
    assert not second.is_over(long)
    assert not second.is_over("0" * 16)


def test_many_deadlines_are_remembered_together(path: Path) -> None:
    file = LoadFile(path)
    late = [f"{i:016x}" for i in range(500)]
    for name in late:
        file.set_deadline(name, 0)
    time.sleep(0.01)
    assert all(map(file.is_over, late))


@pytest.mark.parametrize("name", ["", "1", "0123456789ABCDEF", "0123456789abcdef0"])
def test_a_deadline_harms_nobody_who_has_the_same_id_or_none(path: Path, name: str) -> None:
    file = LoadFile(path)
    file.set_deadline(name, 0)
    time.sleep(0.01)
    assert not file.is_over(name)


def test_nothing_waits_without_a_supervisor() -> None:
    file = LoadFile(counting="tokenizer")
    file.admit("gallery", 1000)
    assert file.wait("gallery") == 0
    assert file.take_excess("gallery", 64) == 0
    assert not file.is_over("0" * 16)


def test_a_record_whose_writer_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "load"
    LoadFile.create(path)
    LoadFile(path).write("gallery", Load(items=5.0))
    data = bytearray(path.read_bytes())
    start = MODELS.index("gallery") * _RECORD.size
    data[start : start + 8] = bytes(8)  # the first of its two versions
    path.write_bytes(data)
    assert LoadFile(path).read("gallery").items == 5.0
