"""A gallery through writes, searches and restarts, against a plain dictionary."""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import GalleryCatalog
from teran.gallery.cluster.catalog import ClusterCatalog
from teran.gallery.cluster.connection import connect
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item, point_of
from teran.gallery.protocol.answers import Search, results
from teran.gallery.protocol.request import Request
from teran.gallery.search.device import DeviceCopy
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query
from tests.unit.gallery.small import DIM, MODEL, fill, found, item, opened, unit


@pytest.fixture
def galleries(tmp_path: Path) -> Iterator[EmbeddedCatalog]:
    made = opened(tmp_path / "root")
    yield made
    made.close()


@pytest.fixture(params=["directory", "cluster", "device"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GalleryCatalog]:
    """Galleries in a directory, in a cluster, and scanned on a device."""
    made: GalleryCatalog
    if request.param == "cluster":
        made = ClusterCatalog(connect(":memory:"), MODEL, kernel())
    else:
        device = partial(DeviceCopy, "cpu") if request.param == "device" else None
        made = EmbeddedCatalog(tmp_path / "root", MODEL, kernel(), device=device)
    yield made
    made.close()


def plain(items: dict[str, Item], query: np.ndarray) -> dict[str, float]:
    scores = {}
    for name, one in items.items():
        best = (one.rows.astype(np.float32) @ query.T).max(axis=0)
        scores[name] = float((best if len(one.rows) >= 36 else best.clip(0)).sum())
    return scores


class GalleryMachine(RuleBasedStateMachine):
    """Any sequence of writes, deletions, searches and restarts agrees with a dictionary."""

    def open(self) -> EmbeddedCatalog:
        return opened(self.root)

    def hits(self, query: np.ndarray, **where: Any) -> list[tuple[str, float]]:
        return found(self.galleries, query, **where)

    ids = st.integers(0, 12).map(lambda i: f"item {i}")

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.galleries = self.open()
        self.expected: dict[str, Item] = {}
        self.galleries.get_or_create("default", Kind.IMAGES)

    @rule(names=st.lists(ids, min_size=1, max_size=5), seed=st.integers(0, 99))
    def upsert(self, names: list[str], seed: int) -> None:
        items = [item(name, seed + i, seed=seed) for i, name in enumerate(names)]
        fill(self.galleries, items)
        self.expected |= {one.id: one for one in items}

    @rule(names=st.lists(ids, min_size=1, max_size=4))
    def delete(self, names: list[str]) -> None:
        gone = self.galleries.writer.write(self.galleries.get("default"), deletes=names).result(30)
        assert gone == len(set(names) & set(self.expected))
        for name in names:
            self.expected.pop(name, None)

    @rule(clean=st.booleans(), keep_cache=st.booleans())
    def restart(self, clean: bool, keep_cache: bool) -> None:
        self.galleries.close()
        compact = self.root / "galleries" / "default" / "compact"
        if not clean:
            (compact / "clean").unlink(missing_ok=True)
        if not keep_cache:
            shutil.rmtree(compact)
        self.galleries = self.open()

    @rule(seed=st.integers(0, 9))
    def search(self, seed: int) -> None:
        query = unit(seed, 4)
        expected = plain(self.expected, query)
        hits = self.hits(query)
        assert {name for name, _ in hits} == set(expected)
        for name, score in hits:
            assert score == pytest.approx(expected[name], abs=1e-3)

    @rule(seed=st.integers(0, 99))
    def filtered(self, seed: int) -> None:
        hits = self.hits(unit(1, 3), seed=seed)
        assert {name for name, _ in hits} == {
            name for name, one in self.expected.items() if one.metadata["seed"] == seed
        }

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "expected"):
            gallery = self.galleries.get("default")
            assert len(gallery) == gallery.store.count() == len(self.expected)

    def teardown(self) -> None:
        if hasattr(self, "galleries"):
            self.galleries.close()
            shutil.rmtree(self.root)


class DeviceMachine(GalleryMachine):
    """The same, scanned by a copy that must keep in step with every write."""

    def open(self) -> EmbeddedCatalog:
        return EmbeddedCatalog(self.root, MODEL, kernel(), device=partial(DeviceCopy, "cpu"))

    def hits(self, query: np.ndarray, **where: Any) -> list[tuple[str, float]]:
        return found(self.galleries, query, exact=False, **where)


_SETTINGS = settings(max_examples=15, stateful_step_count=20, suppress_health_check=[*HealthCheck])
TestGalleryMachine = GalleryMachine.TestCase
TestGalleryMachine.settings = _SETTINGS
TestDeviceMachine = DeviceMachine.TestCase
TestDeviceMachine.settings = _SETTINGS


def test_items_come_back_as_they_went(galleries: EmbeddedCatalog) -> None:
    metadata = {"label": "dög", "n": 2**62, "x": 1.5, "no": None, "deep": {"list": [1, "a", True]}}
    stored = Item("é/1", unit(1, 36).astype(np.float16), uri="s3://x", text="t", metadata=metadata)
    fill(galleries, [stored])
    back = next(galleries.get("default").store.items())
    assert (back.id, back.uri, back.text, back.metadata) == ("é/1", "s3://x", "t", metadata)
    np.testing.assert_array_equal(back.rows, stored.rows)


WRONG_FILTERS: list[dict[str, Any]] = [
    {"a[": 1}, {"": 1}, {"a..b": 1}, {"a b": "x"}, {"a[0]": 1}, {"x": 2**70},
    {"x": {"in": [2**70]}},
    {"x": {"gte": 10**400}}, {"x": float("inf")}, {"x": {"lt": float("nan")}}, {"x": "\ud800"},
    {"x": {"in": ["\ud800"]}}, {"x": None}, {"x": {"in": [None]}}, {"x": [1]}, {"x": {"near": 1}},
]  # fmt: skip


@pytest.mark.parametrize("where", WRONG_FILTERS, ids=str)
def test_filters_that_make_no_sense_are_the_callers_fault(
    anywhere: GalleryCatalog, where: dict[str, Any]
) -> None:
    fill(anywhere, [item("a", 1, x=1)])
    with pytest.raises(TeranInputError, match="where"):
        anywhere.get("default").search([Query(unit(1, 2))], [where])


def test_a_threshold_finds_what_fits_it_whatever_k_is(anywhere: GalleryCatalog) -> None:
    """A long sentence scores high and fits badly; a short one fits, and is not behind it."""
    query = unit(0, 40)
    good = query[:2].astype(np.float16)
    bad = np.concatenate([0.3 * query[:30] + 0.95 * unit(1, 30)])
    bad /= np.linalg.norm(bad, axis=1, keepdims=True)
    items = [Item("short", good, tokens=("a", "b"))]
    items += [Item(f"long{i}", bad.astype(np.float16), tokens=("w",) * 30) for i in range(100)]
    gallery = anywhere.get_or_create("texts", Kind.SENTENCES)
    anywhere.writer.write(gallery, items).result(30)
    for k in (1, 2, 200):
        for exact in (False, True):
            asked = Query(query, k, min_score_per_word=0.8, exact=exact)
            hits = gallery.search([asked], [None])[0].hits
            assert [hit.point for hit in hits] == [items[0].point], (k, exact)


def test_one_bad_write_fails_alone(anywhere: GalleryCatalog) -> None:
    gallery = anywhere.get_or_create("default", Kind.IMAGES)
    held = threading.Event()
    anywhere.writer.run(held.wait)
    good = anywhere.writer.write(gallery, [item("good", 1)])
    bad = anywhere.writer.write(gallery, [Item("bad", np.ones((3, DIM + 1), np.float16))])
    other = anywhere.writer.write(gallery, [item("other", 2)])
    held.set()
    good.result(30)
    other.result(30)
    assert bad.exception(30) is not None
    assert {name for name, _ in found(anywhere, unit(1, 2))} == {"good", "other"}


def test_the_writer_survives_a_panic(galleries: EmbeddedCatalog) -> None:
    class Panic(BaseException):
        pass

    def panic() -> None:
        raise Panic

    with pytest.raises(Panic):
        galleries.writer.run(panic).result(30)
    fill(galleries, [item("a", 1)])
    assert len(found(galleries, unit(1, 2))) == 1


def test_alias_moves_between_galleries(anywhere: GalleryCatalog) -> None:
    galleries = anywhere
    fill(galleries, [item("old", 1)], "v1")
    fill(galleries, [item("new", 1)], "v2")
    galleries.set_alias("live", "v1")
    assert found(galleries, unit(1, 2), name="live")[0][0] == "old"
    galleries.set_alias("live", "v2")
    assert found(galleries, unit(1, 2), name="live")[0][0] == "new"
    assert galleries.info()["aliases"] == {"live": "v2"}
    for alias, target, reason in (("v1", "v2", "is a gallery"), ("x", "none", "no gallery 'none'")):
        with pytest.raises(TeranInputError, match=reason):
            galleries.set_alias(alias, target)
    with pytest.raises(TeranInputError, match="alias 'live' points at 'v2'"):
        galleries.drop("v2")
    galleries.drop("v1")
    with pytest.raises(TeranInputError, match="there is no gallery 'v1'; there are live, v2"):
        galleries.get("v1")


def test_snapshot_brings_everything_back(galleries: EmbeddedCatalog) -> None:
    fill(galleries, [item(f"i{i}", i) for i in range(10)])
    expected = found(galleries, unit(3, 5))
    path = Path(galleries.writer.run(lambda: galleries.snapshot("default")).result(30))
    assert 512 * path.stat().st_blocks < 2e6, "zeros that the engine sets aside take room"
    galleries.writer.write(galleries.get("default"), deletes=["i1"]).result(30)
    galleries.writer.run(lambda: galleries.restore(path.name, "again")).result(30)
    assert found(galleries, unit(3, 5), name="again") == expected
    assert all(one["bytes_on_disk"] < 2e6 for one in galleries.info()["galleries"])
    with pytest.raises(TeranInputError, match="there is a gallery 'again' already"):
        galleries.restore(path.name, "again")
    with pytest.raises(TeranInputError, match="no snapshot"):
        galleries.restore("../../etc/passwd", "other")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(GalleryError, match=r"can't be (restored|read)"):
        galleries.restore(path.name, "broken")
    assert {one["name"] for one in galleries.info()["galleries"]} == {"default", "again"}


@pytest.mark.parametrize("name", ["", "A", "../x", "a" * 65, "white space", ".hidden"])
def test_names_that_are_refused(anywhere: GalleryCatalog, name: str) -> None:
    with pytest.raises(TeranInputError, match="gallery name"):
        anywhere.get_or_create(name, Kind.IMAGES)


@pytest.mark.parametrize("exact", [True, False])
def test_filters(anywhere: GalleryCatalog, exact: bool) -> None:
    galleries = anywhere
    values = [("cat", 1, True), ("dog", 2, False), ("dog", 3, True)]
    fill(
        galleries,
        [item(f"i{n}", n, label=label, n=n, yes=yes, deep={"n": n}) for label, n, yes in values],
    )
    cases: list[tuple[dict[str, Any], set[str]]] = [
        ({"label": "dog"}, {"i2", "i3"}),
        ({"label": {"in": ["cat", "cow"]}}, {"i1"}),
        ({"label": {"in": []}}, set()),
        ({"n": {"in": [1, 3]}}, {"i1", "i3"}),
        ({"n": {"in": list(range(10_000))}}, {"i1", "i2", "i3"}),
        ({"n": {"gt": 1, "lte": 3}}, {"i2", "i3"}),
        ({"n": 2}, {"i2"}),
        ({"n": 2.0}, {"i2"}),
        ({"yes": True}, {"i1", "i3"}),
        ({"yes": {"in": [False, "x"]}}, {"i2"}),
        ({"label": "dog", "yes": True}, {"i3"}),
        ({"deep.n": {"lt": 2}}, {"i1"}),
        ({"absent": 1}, set()),
    ]
    for where, expected in cases:
        assert {
            name for name, _ in found(galleries, unit(1, 3), exact=exact, **where)
        } == expected, where
    tests: tuple[Any, ...] = ({"near": 3}, None, {"gt": "x"}, {"in": [1.5]})
    for test in tests:
        with pytest.raises(TeranInputError, match=r"where\['n'\]"):
            found(galleries, unit(1, 3), n=test)


def test_an_explanation_of_what_is_being_replaced_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search has seen the new rows, and the store still tells of the old boxes."""
    galleries = EmbeddedCatalog(tmp_path / "root", MODEL, kernel())
    fill(galleries, [item("a", 2)])  # of seven regions
    gallery = galleries.get("default")
    old = gallery.items([point_of("a")])
    fill(galleries, [item("a", 3)])  # of 36
    monkeypatch.setattr(gallery, "items", lambda _: old)
    query = Query(unit(5, 3), 1)
    request = Request({"explain": True}, {}, lambda _: None)
    search = Search(query, (), None)
    answer = results(gallery, request, [(search, gallery.search([query], [None])[0])], 1 << 20)
    assert json.loads(answer["records"][0, 0])["matches"] == []
    monkeypatch.undo()
    answer = results(gallery, request, [(search, gallery.search([query], [None])[0])], 1 << 20)
    assert len(json.loads(answer["records"][0, 0])["matches"]) == 3
    galleries.close()
