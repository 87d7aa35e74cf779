"""Bounds that are fitted anew beside searches and writes, and the files they are kept in."""

import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from teran.gallery.embedded import compact_files, files
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.search import compact
from teran.gallery.search.pruning import Basis
from tests.unit.gallery.small import DIM, fill, found, item, opened, unit

ITEMS = 120


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "_PART", 10 * 36 * DIM)


def copy_of(galleries: EmbeddedCatalog) -> PersistentCompact:
    return galleries.get("default")._compact


def wrong_bounds(copy: PersistentCompact) -> list[tuple[int, int]]:
    """Chunks and slots whose bounds are not those of their items."""
    assert copy.basis is not None
    wrong = []
    for chunk, slot in copy.places.values():
        expected = copy.basis.rows(chunk.arrays["exact"][slot].astype(np.float32))
        # Of another part of a matrix product the last bits may be others.
        if not all(
            np.allclose(chunk.arrays[name][slot], value, atol=1e-3 if name != "prefix" else 1)
            for name, value in expected.items()
        ):
            wrong.append((chunk.number, slot))
    return wrong


def test_bounds_cover_what_is_written_while_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path / "root")) as galleries:
        fill(galleries, [item(f"i{i}", i) for i in range(ITEMS)])
        gallery, rows = galleries.get("default"), Basis.rows
        later = iter(range(1000, 1000 + 2 * ITEMS))
        fitting = threading.Thread(target=gallery.fit)

        def writing(basis: Basis, values: npt.NDArray[np.float32]) -> object:
            beside = threading.current_thread() is fitting and not gallery._lock.locked()
            if beside and (n := next(later, None)):
                fill(galleries, [item(f"i{n % 50}", n), item(f"new-{n}", n)])
            return rows(basis, values)

        monkeypatch.setattr(Basis, "rows", writing)
        fitting.start()
        fitting.join(60)
        assert not fitting.is_alive()
        monkeypatch.undo()
        assert next(later) > 1005, "nothing was written meanwhile"
        assert copy_of(galleries).basis is not None
        assert wrong_bounds(copy_of(galleries)) == []
        expected = found(galleries, unit(1011, 4))
        assert expected == found(galleries, unit(1011, 4), exact=False)
    with closing(opened(tmp_path / "root")) as galleries:
        assert wrong_bounds(copy_of(galleries)) == []
        assert found(galleries, unit(1011, 4)) == expected


def test_searches_wait_for_a_part_of_new_bounds_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path / "root")) as galleries:
        fill(galleries, [item(f"i{i}", 0) for i in range(ITEMS)])
        gallery, written = galleries.get("default"), [0]
        lock, write_all = gallery._lock, files.write_all

        class Counting:
            def __enter__(self) -> None:
                lock.acquire()
                written.append(0)

            def __exit__(self, *_: object) -> None:
                lock.release()

        def counted(file: int, data: memoryview, at: int) -> None:
            written[-1] += data.nbytes
            write_all(file, data, at)

        monkeypatch.setattr(compact_files, "write_all", counted)
        monkeypatch.setattr(gallery, "_lock", Counting())
        gallery.fit()
        monkeypatch.undo()
        assert max(written) * ITEMS / 20 < sum(written)


def test_bounds_are_mended_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut, or where a process is killed while it makes new ones."""
    with closing(opened(tmp_path / "root")) as galleries:
        fill(galleries, [item(f"i{i}", i) for i in range(ITEMS)])
        galleries.get("default").fit()
    for file in (tmp_path / "root/galleries/default/compact").glob("*.prefix"):
        file.write_bytes(bytes(file.stat().st_size))
    made: list[int] = []
    rows = Basis.rows

    def counted(basis: Basis, values: npt.NDArray[np.float32]) -> object:
        made.append(len(values))
        return rows(basis, values)

    monkeypatch.setattr(Basis, "rows", counted)
    for expected in (ITEMS, 0):
        made.clear()
        with closing(opened(tmp_path / "root")) as galleries:
            assert sum(made) == expected
            assert wrong_bounds(copy_of(galleries)) == []
