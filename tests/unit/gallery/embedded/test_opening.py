"""Directories that are opened again, whatever has come in between."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.embedded.store import GalleryStore
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from tests.unit.gallery.small import DIM, MODEL, descriptors, fill, found, item, opened, unit


def test_damaged_cache_is_made_again(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, [item(f"i{i}", 3 * i) for i in range(20)])
    query = unit(5, 4)
    expected = found(first, query)
    first.close()
    compact = tmp_path / "galleries" / "default" / "compact"
    for damage in (
        lambda: (compact / "journal").write_text("nonsense"),
        lambda: (compact / "00000-36.exact").write_bytes(b"short"),
        lambda: (compact / "00000-36.int8").unlink(),
    ):
        damage()
        again = opened(tmp_path)
        assert found(again, query) == expected
        again.close()


def test_torn_rows_are_read_from_the_store(tmp_path: Path) -> None:
    """What the cache holds is not trusted after a crash."""
    first = opened(tmp_path)
    fill(first, [item(f"i{i}", 3 * i) for i in range(5)])
    query = unit(5, 4)
    expected = found(first, query)
    first.close()
    compact = tmp_path / "galleries" / "default" / "compact"
    data = bytearray((compact / "00000-36.exact").read_bytes())
    data[: 36 * DIM] = bytes(36 * DIM)
    (compact / "00000-36.exact").write_bytes(data)
    again = opened(tmp_path)
    assert found(again, query) == expected
    again.close()


def test_another_model_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, [item("a", 1)])
    first.close()
    other = opened(tmp_path, Model("b" * 64, DIM, "MrSw"))
    with pytest.raises(GalleryError, match=r"made with another model \(aaaaaaaaaaaa"):
        other.get("default")
    fill(other, [item("a", 1)], "fresh")  # other galleries are not held up
    other.close()
    assert len(opened_and_closed(tmp_path)) == 1


def opened_and_closed(root: Path) -> list[dict[str, object]]:
    galleries = opened(root)
    galleries.close()
    told: list[dict[str, object]] = galleries.info()["galleries"]
    return told


def test_second_process_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(GalleryError, match=r"in use by process \d+ since .*; give this"):
        opened(tmp_path)
    first.close()


def test_foreign_files_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(GalleryError, match=r"thesis\.doc is no part of a gallery"):
        opened(tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "years of work"


def test_what_is_foreign_among_galleries_is_named_and_holds_up_nothing(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, [item("a", 1)])
    first.close()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "galleries" / ".git").mkdir()
    (tmp_path / "galleries" / "stray").write_text("a file")
    again = opened(tmp_path)
    assert set(again.info()["unusable"]) == {str(tmp_path / "notes.txt"), ".git", "stray"}
    assert [name for name, _ in found(again, unit(1, 2))] == ["a"]
    with pytest.raises(GalleryError, match="stray is no gallery"):
        again.get("stray")
    again.close()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "galleries" / ".git").is_dir()


@pytest.mark.parametrize("victim", ["gallery.json", "store/edge_config.json"])
def test_damaged_gallery_is_refused_and_kept(tmp_path: Path, victim: str) -> None:
    first = opened(tmp_path)
    fill(first, [item("a", 1)])
    fill(first, [item("b", 1)], "whole")
    first.close()
    path = tmp_path / "galleries" / "default" / victim
    path.write_bytes(b"damaged")
    again = opened(tmp_path)
    with pytest.raises(GalleryError, match="default"):
        again.get("default")
    assert [name for name, _ in found(again, unit(1, 2), name="whole")] == ["b"]
    again.close()
    assert path.read_bytes() == b"damaged"


def test_a_gallery_that_cant_be_opened_keeps_no_file_open(tmp_path: Path) -> None:
    first = opened(tmp_path)
    fill(first, [item("a", 1)])
    first.close()
    log = tmp_path / "galleries" / "default" / "redo"
    log.unlink()
    log.mkdir()
    damaged = opened(tmp_path)
    with pytest.raises(GalleryError, match="redo"):
        damaged.get("default")
    damaged.close()
    assert not descriptors(tmp_path)
    log.rmdir()
    again = opened(tmp_path)
    assert len(again.get("default")) == 1
    again.close()


def test_a_restore_reads_few_items_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine lets no search run meanwhile."""
    read: list[int] = []
    get = GalleryStore.get

    def counted(store: GalleryStore, points: Sequence[UUID], **options: Any) -> dict[UUID, Item]:
        read.append(len(points))
        return get(store, points, **options)

    with closing(opened(tmp_path / "root")) as galleries:
        fill(galleries, [item(f"i{i}", i) for i in range(50)])
        snapshot = galleries.snapshot("default")
        monkeypatch.setattr(GalleryStore, "get", counted)
        assert len(galleries.restore(snapshot, "again")) == 50
    assert sum(read) == 50
    assert max(read) <= 8


def test_a_gallery_that_does_not_open_lets_go_of_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(tmp_path / "root")) as galleries:
        fill(galleries, [item("a", 1)])
    closed: list[Path] = []
    close = GalleryStore.close

    def noted(store: GalleryStore) -> None:
        closed.append(tmp_path)
        close(store)

    def failing(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(GalleryStore, "close", noted)
    monkeypatch.setattr(PersistentCompact, "load", failing)
    with closing(opened(tmp_path / "root")) as galleries:
        assert set(galleries.info()["unusable"]) == {"default"}
        assert closed


def test_galleries_are_not_without_number(tmp_path: Path) -> None:
    galleries = EmbeddedCatalog(tmp_path / "root", MODEL, kernel(), most=2)
    for name in ("one", "two"):
        fill(galleries, [item("a", 1)], name)
    path = galleries.snapshot("one")
    too_many = r"2 galleries already; .* --gallery-count"
    with pytest.raises(TeranInputError, match=too_many):
        galleries.get_or_create("three", Kind.IMAGES)
    with pytest.raises(TeranInputError, match=too_many):
        galleries.restore(path, "three")
    fill(galleries, [item("b", 2)], "two")
    galleries.drop("one")
    galleries.restore(path, "three")
    galleries.close()
