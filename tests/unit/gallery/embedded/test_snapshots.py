"""Snapshots that are damaged, restores that fail: nothing is left of them, nothing is lost."""

import json
import shutil
import tarfile
import threading
from pathlib import Path

import pytest

from teran.errors import GalleryError
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.embedded.snapshot import write_snapshot
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from tests.unit.gallery.embedded.test_damage import ITEMS, Found, made, results
from tests.unit.gallery.small import MODEL, opened


def snapshot(root: Path) -> tuple[EmbeddedCatalog, Path, Found]:
    expected = made(root)
    galleries = opened(root)
    return galleries, Path(galleries.snapshot("default")), expected


def test_nothing_is_removed_that_was_not_made_here(tmp_path: Path) -> None:
    galleries, path, _ = snapshot(tmp_path / "root")
    precious = tmp_path / "root" / "galleries" / "copied" / "gallery.json"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(GalleryError, match="is there already"):
        galleries.get_or_create("copied", Kind.IMAGES)
    with pytest.raises(GalleryError, match="is there already"):
        galleries.restore(path.name, "copied")
    assert precious.read_text() == "years of work"
    galleries.close()


def test_a_snapshot_that_was_cut_off_restores_nothing(tmp_path: Path) -> None:
    galleries, path, expected = snapshot(tmp_path / "root")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        boundaries = [member.offset for member in archive.getmembers()]
    for size in (*boundaries, len(whole) // 2, len(whole) - 10240):
        path.write_bytes(whole[:size])
        with pytest.raises(GalleryError, match=r"cut off or damaged|is damaged|can't be restored"):
            galleries.restore(path.name, "again")
        assert not galleries.exists("again")
    path.write_bytes(whole)
    galleries.restore(path.name, "again")  # the name is free
    assert results(galleries, "again") == expected
    galleries.close()


def test_a_garbled_snapshot_restores_nothing(tmp_path: Path) -> None:
    galleries, path, _ = snapshot(tmp_path / "root")
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if m.size]
    for member in members:
        middle = member.offset_data + member.size // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
        with pytest.raises(GalleryError):
            galleries.restore(path.name, "again")
        assert not (tmp_path / "root" / "galleries" / "again").exists()
    galleries.close()


def test_a_snapshot_with_something_in_it_is_refused(tmp_path: Path) -> None:
    galleries, path, _ = snapshot(tmp_path / "root")
    (tmp_path / "extra").write_text("x")
    with tarfile.open(path, "a") as archive:
        archive.add(tmp_path / "extra", "store/extra")
    with pytest.raises(GalleryError, match="store/extra is missing or foreign"):
        galleries.restore(path.name, "again")
    galleries.close()


def test_a_restore_that_fails_at_the_last_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are as they were written, and yet the engine finds other items in them."""
    galleries, path, expected = snapshot(tmp_path / "root")
    whole = path.read_bytes()
    write_snapshot(galleries.get("default").directory, ITEMS + 1, path)
    with pytest.raises(GalleryError, match=rf"holds {ITEMS} items instead of {ITEMS + 1}"):
        galleries.restore(path.name, "again")
    path.write_bytes(whole)
    with monkeypatch.context() as patched:
        patched.setattr(PersistentCompact, "load", lambda *_: [][1])
        with pytest.raises(GalleryError, match="can't be restored"):
            galleries.restore(path.name, "again")
    assert not galleries.exists("again")
    assert not (tmp_path / "root" / "galleries" / "again").exists()
    galleries.restore(path.name, "again")
    assert results(galleries, "again") == expected
    galleries.close()


def test_snapshots_have_a_quota_and_leave_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "root")
    galleries = EmbeddedCatalog(tmp_path / "root", MODEL, kernel(), most_snapshots=2)
    galleries.snapshot("default")
    galleries.snapshot("whole")
    with pytest.raises(GalleryError, match=r"2 snapshots .* --gallery-snapshots"):
        galleries.snapshot("default")
    next((tmp_path / "root" / "snapshots").iterdir()).unlink()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100 << 20))
    with pytest.raises(GalleryError, match="nearly full"):
        galleries.snapshot("default")
    assert not list((tmp_path / "root" / "snapshots").glob("*.new"))
    galleries.close()


def test_info_while_galleries_come_and_go(tmp_path: Path) -> None:
    galleries, path, _ = snapshot(tmp_path / "root")
    failures: list[Exception] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            try:
                json.dumps(galleries.info())
            except Exception as error:
                failures.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(12):
        galleries.restore(path.name, f"g{i}")
        galleries.drop(f"g{i}")
    over.set()
    thread.join()
    galleries.close()
    assert not failures
