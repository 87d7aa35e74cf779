"""The log of what may not be on the disk elsewhere: it is done again, as far as it is whole."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.errors import GalleryError
from teran.gallery.embedded import store as store_module
from teran.gallery.embedded.redo import Change, Deletion, RedoLog
from teran.gallery.embedded.store import GalleryStore
from teran.gallery.item import Item, point_of
from tests.unit.gallery.small import descriptors

DIM = 8


def item(name: str, version: int = 0, seed: int = 0) -> Item:
    rows = np.random.default_rng(seed).standard_normal((3, DIM)).astype(np.float16)
    return Item(name, rows, tokens=("a", "dog", "ärger"), metadata={"n": seed}, version=version)


def same(one: Change, other: Change) -> bool:
    if isinstance(one, Deletion) or isinstance(other, Deletion):
        return one == other
    return (
        np.array_equal(one.rows, other.rows)
        and replace(one, rows=other.rows).tokens == other.tokens
        and (one.id, one.version, one.metadata) == (other.id, other.version, other.metadata)
    )


CHANGES: list[Change] = [
    item("a", 1, 1),
    item("b", 2, 2),
    Deletion(point_of("a"), 3),
    item("b", 4, 4),
    item("c", 5, 5),
]


def expected(count: int) -> list[Change]:
    last = {change.point: change for change in CHANGES[:count]}
    return list(last.values())


def read(path: Path) -> list[Change]:
    log = RedoLog(path, DIM)
    try:
        return log.changes()
    finally:
        log.close()


def written(path: Path) -> list[int]:
    """A log of all changes; its size after each."""
    log, sizes = RedoLog(path, DIM), [0]
    for change in CHANGES:
        log.append([change])
        sizes.append(log.size)
    log.close()
    return sizes


@settings(max_examples=60)
@given(part=st.floats(0, 1), garbled=st.booleans())
def test_it_is_read_as_far_as_it_is_whole(
    tmp_path_factory: pytest.TempPathFactory, part: float, garbled: bool
) -> None:
    path = tmp_path_factory.mktemp("redo") / "redo"
    sizes = written(path)
    data = path.read_bytes()
    cut = int(part * len(data))
    path.write_bytes(data[:cut] + (b"\x55" * 40 if garbled else b""))
    whole = sum(size <= cut for size in sizes) - 1
    found = read(path)
    assert len(found) == len(expected(whole))
    assert all(map(same, found, expected(whole)))


def test_what_was_undone_or_cleared_is_not_done_again(tmp_path: Path) -> None:
    log = RedoLog(tmp_path / "redo", DIM)
    log.append([item("a", 1), item("b", 2)])
    log.undo([item("b", 2)])
    assert [change.version for change in read(tmp_path / "redo")] == [1]
    log.append([item("a", 3)])
    log.undo([item("a", 3)])
    assert [change.version for change in read(tmp_path / "redo")] == [1], "the one before counts"
    log.clear()
    assert read(tmp_path / "redo") == []
    log.append([item("c", 4)])
    assert [change.version for change in read(tmp_path / "redo")] == [4]
    log.close()


def broken(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_a_log_that_could_not_be_cleared_has_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RedoLog(tmp_path / "redo", DIM)
    log.append([item("a", 1)])
    with monkeypatch.context() as patch:
        patch.setattr("teran.gallery.embedded.redo.os.fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            log.clear()
    log.append([item("b", 2)])
    assert [change.version for change in read(tmp_path / "redo")] == [2]
    log.close()


def test_what_a_failed_write_has_left_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RedoLog(tmp_path / "redo", DIM)
    log.append([item("a", 1)])
    with monkeypatch.context() as patch:
        for name in ("fsync", "ftruncate"):
            patch.setattr(f"teran.gallery.embedded.redo.os.{name}", broken)
        with pytest.raises(OSError, match="Input/output"):
            log.append([item("x", 2), item("y", 3)])
    log.append([item("b", 2)])  # as long as the first of those
    assert [change.version for change in read(tmp_path / "redo")] == [1, 2]
    log.close()


def put(store: GalleryStore, *items: Item) -> list[Item]:
    logged = store.log(items)
    for one in logged:
        store.put(one)
    return logged


def there(store: GalleryStore) -> dict[str, int]:
    return {one.id: one.metadata["n"] for one in store.items()}


def test_an_old_log_changes_nothing_newer(tmp_path: Path) -> None:
    """As where a loss of power brings back a log that was cleared."""
    root = tmp_path / "gallery"
    root.mkdir()
    store = GalleryStore(root / "store", DIM)
    put(store, item("a", seed=1), item("b", seed=2))
    store.delete([point_of("b")])
    shutil.copy(root / "redo", tmp_path / "old")
    put(store, item("a", seed=3), item("b", seed=4))
    store.close()
    shutil.copy(tmp_path / "old", root / "redo")
    store = GalleryStore(root / "store", DIM)
    assert there(store) == {"a": 3, "b": 4}
    store.close()


def test_what_the_store_has_lost_or_torn_is_written_again(tmp_path: Path) -> None:
    root, copy = tmp_path / "gallery", tmp_path / "copy"
    root.mkdir()
    store = GalleryStore(root / "store", DIM)
    put(store, item("a", seed=1), item("gone", seed=2))
    store.flush()
    put(store, item("a", seed=3), item("new", seed=4))
    store.delete([point_of("gone")])
    shutil.copy(root / "redo", tmp_path / "redo")
    store.close()  # so that the engine's own log has nothing to say
    shutil.copytree(root, copy)
    shutil.copy(tmp_path / "redo", copy / "redo")
    (vectors,) = copy.glob("store/segments/*/vector_storage-rows/vectors/chunk_0.mmap")
    data = bytearray(vectors.read_bytes())
    start = data.index(item("a", seed=3).rows.tobytes())
    data[start : start + 7] = b"garbled"
    vectors.write_bytes(data)
    again = GalleryStore(copy / "store", DIM)
    assert there(again) == {"a": 3, "new": 4}
    assert same(next(iter(again.get([point_of("a")]).values())), item("a", 3, 3))
    again.close()


def test_a_long_log_is_flushed_however_busy_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_LARGEST_REDO", 1000)
    store = GalleryStore(tmp_path / "store", DIM)
    for seed in range(50):
        put(store, item("a", seed=seed))
        assert (tmp_path / "redo").stat().st_size < 2000
    store.close()


def test_a_write_that_can_t_be_logged_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GalleryStore(tmp_path / "store", DIM)
    put(store, item("a", seed=1))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("teran.gallery.embedded.redo.os.fsync", full)
        with pytest.raises(GalleryError, match="No space left"):
            store.log([item("a", seed=2)])
    assert there(store) == {"a": 1}
    store.close()
    store = GalleryStore(tmp_path / "store", DIM)
    assert there(store) == {"a": 1}
    store.close()


def test_it_is_done_again_only_where_the_disk_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine maps its files: it would die of a page that the disk has no room for."""
    store = GalleryStore(tmp_path / "store", DIM)
    put(store, item("a", seed=1))
    shutil.copytree(tmp_path / "store", tmp_path / "older")
    store.log([item("b", seed=2)])
    shutil.copy(tmp_path / "redo", tmp_path / "log")
    store.close()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "older").rename(tmp_path / "store")
    shutil.copy(tmp_path / "log", tmp_path / "redo")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
        with pytest.raises(GalleryError, match="nearly full"):
            GalleryStore(tmp_path / "store", DIM)
        assert descriptors(tmp_path / "redo") == 0
    store = GalleryStore(tmp_path / "store", DIM)
    assert there(store) == {"a": 1, "b": 2}
    store.close()


def test_a_store_that_can_t_be_flushed_lets_go_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GalleryStore(tmp_path / "store", DIM)
    put(store, item("a", seed=1))
    monkeypatch.setattr("teran.gallery.embedded.redo.os.ftruncate", broken)
    with pytest.raises(GalleryError, match="Input/output"):
        store.close()
    assert descriptors(tmp_path) == 0
