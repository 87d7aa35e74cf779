"""Files of galleries cut, zeroed or garbled: nothing wrong is found, nothing else suffers."""

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teran.errors import GalleryError, TeranInputError
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.embedded.snapshot import write_snapshot
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from tests.unit.gallery.small import MODEL, fill, found, item, opened, unit

ITEMS = 100
QUERIES = [unit(seed, 4) for seed in range(5, 11)]
QUERY = QUERIES[0]
Found = list[list[tuple[str, float]]]
Damage = Callable[[bytes, float], bytes]


def cut(data: bytes, where: float) -> bytes:
    return data[: int(len(data) * where)]


def zeroed(data: bytes, where: float) -> bytes:
    """As after a loss of power: what was written last is not there."""
    start = int(len(data) * where)
    return data[:start] + bytes(len(data) - start)


def garbled(data: bytes, where: float) -> bytes:
    start = int(len(data) * where)
    noise = np.random.default_rng(start).bytes(min(64, len(data) - start))
    return data[:start] + noise + data[start + len(noise) :]


DAMAGES: list[Damage] = [cut, zeroed, garbled]
PLACES = (0.0, 0.3, 0.77, 0.98)
EVERYWHERE = "TERAN_TEST_KILLS" in os.environ
"""Whether to damage files at all places, which takes longer."""


def results(galleries: EmbeddedCatalog, name: str = "default") -> Found:
    """What is found by bounds, and by a scan of the int8 copy."""
    return [
        found(galleries, query, 5, name=name, exact=exact)
        for query in QUERIES
        for exact in (True, False)
    ]


def made(root: Path) -> Found:
    """Two galleries, bounds and all; what searches of the first find."""
    galleries = opened(root)
    fill(galleries, [item(f"i{i}", i) for i in range(ITEMS)])
    fill(galleries, [item("b", 1)], "whole")
    gallery = galleries.get("default")
    gallery.fit()
    assert gallery.info()["bounds"]
    expected = results(galleries)
    galleries.close()
    return expected


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Found]:
    root = tmp_path_factory.mktemp("pristine") / "root"
    expected = made(root)
    assert expected[0][0][0] == "i5"
    return root, expected


def files(root: Path, part: str) -> list[Path]:
    folder = root / "galleries" / "default"
    return [
        one for one in sorted((folder / part).rglob("*")) if one.is_file() and one.stat().st_size
    ]


def damaged(pristine: Path, root: Path, name: Path, damage: Damage, where: float) -> bool:
    """A copy with one file damaged; whether that changed it."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(pristine, root)
    path = root / name.relative_to(pristine)
    before = path.read_bytes()
    path.write_bytes(damage(before, where))
    return path.read_bytes() != before


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_copy_for_searches_never_finds_anything_else(
    pristine: tuple[Path, Found], tmp_path: Path, damage: Damage
) -> None:
    root, expected = pristine
    names = files(root, "compact")
    assert {one.suffix for one in names} >= {".exact", ".int8", ".scale", ".prefix", ".slack"}
    for i, name in enumerate(names):
        for where in PLACES if EVERYWHERE else PLACES[i % 2 :: 2]:
            if damaged(root, tmp_path / "root", name, damage, where):
                galleries = opened(tmp_path / "root")
                assert results(galleries) == expected, (name.name, where)
                galleries.close()


@pytest.mark.parametrize("position", [*range(1, 56, 3), 200])
def test_a_journal_may_end_anywhere(
    pristine: tuple[Path, Found], tmp_path: Path, position: int
) -> None:
    root, expected = pristine
    journal = root / "galleries" / "default" / "compact" / "journal"
    assert damaged(root, tmp_path / "root", journal, lambda data, _: data[:-position], 0)
    galleries = opened(tmp_path / "root")
    assert results(galleries) == expected
    galleries.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_whole_or_set_aside(
    pristine: tuple[Path, Found], tmp_path: Path, damage: Damage
) -> None:
    """Also where the engine panics; the copy is gone too, so everything comes from the store."""
    root, expected = pristine
    set_aside = 0
    for name in files(root, "store"):
        for where in PLACES if EVERYWHERE else (0.0, 0.5):
            if not damaged(root, tmp_path / "root", name, damage, where):
                continue
            shutil.rmtree(tmp_path / "root" / "galleries" / "default" / "compact")
            galleries = opened(tmp_path / "root")
            unusable = galleries.info()["unusable"]
            assert [one for one, _ in found(galleries, QUERY, name="whole")] == ["b"]
            if unusable:
                set_aside += 1
                assert list(unusable) == ["default"]
                with pytest.raises(GalleryError):
                    galleries.get("default")
            else:
                assert results(galleries) == expected, (name, where)
            galleries.close()
    assert set_aside


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_description_is_whole_or_set_aside(
    pristine: tuple[Path, Found], tmp_path: Path, damage: Damage
) -> None:
    root, expected = pristine
    name = root / "galleries" / "default" / "gallery.json"
    for where in PLACES if EVERYWHERE else PLACES[:2]:
        assert damaged(root, tmp_path / "root", name, damage, where)
        galleries = opened(tmp_path / "root")
        assert [one for one, _ in found(galleries, QUERY, name="whole")] == ["b"]
        unusable = set(galleries.info()["unusable"])
        assert unusable <= {"default"}
        assert unusable or results(galleries) == expected
        galleries.close()


def test_an_unusable_gallery_can_be_dropped_and_made_again(tmp_path: Path) -> None:
    made(tmp_path / "root")
    (tmp_path / "root" / "galleries" / "default" / "gallery.json").write_text("")
    galleries = opened(tmp_path / "root")
    assert set(galleries.info()["unusable"]) == {"default"}
    galleries.drop("default")
    fill(galleries, [item("again", 1)])
    assert [one for one, _ in found(galleries, QUERY)] == ["again"]
    galleries.close()


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


def test_a_gallery_without_its_store_is_set_aside(tmp_path: Path) -> None:
    made(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "galleries" / "default" / "store")
    galleries = opened(tmp_path / "root")
    assert set(galleries.info()["unusable"]) == {"default"}
    assert [one for one, _ in found(galleries, QUERY, name="whole")] == ["b"]
    galleries.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_damaged_aliases_hold_up_no_gallery(tmp_path: Path, content: bytes) -> None:
    expected = made(tmp_path / "root")
    path = tmp_path / "root" / "aliases.json"
    path.write_bytes(content)
    galleries = opened(tmp_path / "root")
    assert results(galleries) == expected
    assert set(galleries.info()["unusable"]) == {"aliases.json"}
    # What was an alias must not become a gallery of that name.
    for name in ("live", "another"):
        with pytest.raises(GalleryError, match=r"aliases\.json can't be read"):
            galleries.get_or_create(name, Kind.IMAGES)
    galleries.set_alias("live", "default")
    assert results(galleries, "live") == expected
    assert not galleries.info()["unusable"]
    galleries.close()
    assert (tmp_path / "root" / "aliases.json.damaged").read_bytes() == content
    again = opened(tmp_path / "root")
    assert results(again, "live") == expected
    again.remove_alias("live")
    with pytest.raises(TeranInputError, match="no gallery 'live'"):
        again.get("live")
    with pytest.raises(TeranInputError, match="no alias 'live'"):
        again.remove_alias("live")
    again.close()


def snapshot(root: Path) -> tuple[EmbeddedCatalog, Path, Found]:
    expected = made(root)
    galleries = opened(root)
    return galleries, Path(galleries.snapshot("default")), expected


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


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:1000], at))
    expected = made(tmp_path / "root")
    monkeypatch.undo()
    read = PersistentCompact._read
    lost: list[int] = []

    def counting(self: PersistentCompact, versions: object) -> None:
        read(self, versions)  # type: ignore[arg-type]
        lost.append(len(versions) - len(self.places))  # type: ignore[arg-type]

    monkeypatch.setattr(PersistentCompact, "_read", counting)
    galleries = opened(tmp_path / "root")
    assert results(galleries) == expected
    assert lost == [0, 0]
    galleries.close()


@pytest.mark.parametrize("part", ["journal", "arrays"])
def test_a_full_disk_costs_only_the_copys_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What is stored is told to be stored, and found at once, also in a chunk that is new."""
    galleries = opened(tmp_path / "root")
    fill(galleries, [item("a", 0)])
    compact = galleries.get("default")._compact
    if part == "journal":
        assert compact._journal is not None
        compact._journal.close()
        compact._journal = Path("/dev/full").open("a", encoding="ascii")  # noqa: SIM115
    else:
        monkeypatch.setattr("teran.gallery.embedded.compact_files.write_all", full)
    fill(galleries, [item("b", 2)])  # of another length, so in a chunk of its own
    fill(galleries, [item("c", 3)])
    assert {name for name, _ in found(galleries, QUERY)} == {"a", "b", "c"}
    galleries.close()
    monkeypatch.undo()
    again = opened(tmp_path / "root")
    assert {name for name, _ in found(again, QUERY)} == {"a", "b", "c"}
    again.close()


def full(*_: object) -> int:
    raise OSError(28, "No space left on device")
