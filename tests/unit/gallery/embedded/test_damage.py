"""Files of galleries cut, zeroed or garbled: nothing wrong is found, nothing else suffers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from teran.errors import GalleryError, TeranInputError
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.compact_files import PersistentCompact
from teran.gallery.search.pooling import Kind
from tests.unit.gallery.small import fill, found, item, opened, unit

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
