"""Writes make way for searches, step by step, and get on all the same."""

from pathlib import Path

import pytest

from teran.gallery import courtesy
from tests.unit.gallery.small import fill, found, item, opened, unit


def test_no_step_of_a_write_is_done_while_something_is_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courtesy, "_PATIENCE", 30.0)
    galleries = opened(tmp_path / "root")
    fill(galleries, [item("a", 1)])
    gallery = galleries.get("default")
    with galleries.courtesy:
        writing = galleries.writer.write(gallery, [item("b", 2), item("c", 3)])
        with pytest.raises(TimeoutError):
            writing.result(0.3)
        assert [one for one, _ in found(galleries, unit(2, 4))] == ["a"]
    writing.result(30)
    assert len(gallery) == 3
    galleries.close()


def test_a_write_is_done_however_much_is_searched(tmp_path: Path) -> None:
    galleries = opened(tmp_path / "root")
    with galleries.courtesy:
        fill(galleries, [item(f"i{i}", i) for i in range(5)])
    assert len(galleries.get("default")) == 5
    galleries.close()
