"""The room of deleted items: given back at the next start, or the store stays what it was."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import qdrant_edge as edge

from teran.gallery.embedded import store as embedded_store
from teran.gallery.embedded.engine import engine_config
from teran.gallery.embedded.files import room_of
from tests.unit.gallery.small import DIM, fill, found, item, opened, unit

QUERY = unit(5, 4)


def mostly_deleted(root: Path) -> tuple[Path, Any]:
    """The store of a gallery with 1,700 items of which 100 are left, and what is found in it."""
    with closing(opened(root)) as galleries:
        for _ in range(4):
            fill(galleries, [item(f"i{i}", 3 * i) for i in range(400)])
            gallery = galleries.get("default")
            galleries.writer.write(gallery, [], [f"i{i}" for i in range(400)]).result(60)
        fill(galleries, [item(f"i{i}", 3 * i) for i in range(100)])
        return root / "galleries" / "default" / "store", found(galleries, QUERY)


def test_deleted_items_give_their_room_back_at_the_next_start(tmp_path: Path) -> None:
    store, expected = mostly_deleted(tmp_path)
    before = room_of(store)
    with closing(opened(tmp_path)) as galleries:
        assert before - room_of(store) > 1500 * 36 * DIM * 2, "of the items that are deleted"
        assert found(galleries, QUERY) == expected
        fill(galleries, [item("new", 1)])
        expected = found(galleries, QUERY)
    with closing(opened(tmp_path)) as galleries:
        assert len(expected) == 101
        assert found(galleries, QUERY) == expected


def test_so_do_those_of_a_store_with_the_log_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_log(embed_dim: int) -> edge.EdgeConfig:
        config = engine_config(embed_dim)
        return edge.EdgeConfig(vectors=config.vectors, payload_memory=config.payload_memory)

    monkeypatch.setattr(embedded_store, "engine_config", with_log)
    store, expected = mostly_deleted(tmp_path)
    before = room_of(store)
    with closing(opened(tmp_path)) as galleries:
        assert before - room_of(store) > 1500 * 36 * DIM * 2
        assert found(galleries, QUERY) == expected


def test_a_store_without_room_for_a_copy_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, expected = mostly_deleted(tmp_path)
    before = room_of(store)
    free = shutil.disk_usage(tmp_path)._replace(free=(256 << 20) + before)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with closing(opened(tmp_path)) as galleries:
        assert room_of(store) > before // 2
        assert found(galleries, QUERY) == expected


def test_a_store_is_not_copied_for_few_deleted_items(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as galleries:
        fill(galleries, [item(f"i{i}", 3 * i) for i in range(800)])
        galleries.writer.write(galleries.get("default"), [], [f"i{i}" for i in range(300)]).result()
    store = tmp_path / "galleries" / "default" / "store"
    same = store.stat().st_ino
    with closing(opened(tmp_path)):
        assert store.stat().st_ino == same


def test_what_was_cut_off_is_ended(tmp_path: Path) -> None:
    store, expected = mostly_deleted(tmp_path)
    new, old = store.with_name("store.new"), store.with_name("store.old")
    new.mkdir()
    (new / "half a file").write_bytes(b"what there is of a copy")
    with closing(opened(tmp_path)) as galleries:
        assert found(galleries, QUERY) == expected
    shutil.copytree(store, old)
    store.rename(new)  # between the two names
    with closing(opened(tmp_path)) as galleries:
        assert found(galleries, QUERY) == expected
    assert store.is_dir()
    assert not new.exists()
    assert not old.exists()
