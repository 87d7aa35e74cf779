"""Galleries in a cluster, on the client library's in-process implementation of one."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from teran.errors import GalleryBusyError, GalleryError, GalleryUnreachableError, TeranInputError
from teran.gallery.catalog import Model
from teran.gallery.cluster import connection
from teran.gallery.cluster.catalog import PREFIX, ClusterCatalog
from teran.gallery.cluster.connection import Calls, connect
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item
from teran.gallery.migration import migrate
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query

DIM = 64


def model(pooling: str = "MrSw", fingerprint: str = "a") -> Model:
    return Model(fingerprint * 64, DIM, pooling)


def unit(seed: int, count: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    result: np.ndarray = rows.astype(np.float32)
    return result


def items(count: int, kind: Kind) -> list[Item]:
    lengths = np.random.default_rng(0).choice([36, 50, 20] if kind is Kind.IMAGES else [5, 12], 99)
    return [
        Item(
            f"i{i}",
            unit(i, int(lengths[i])).astype(np.float16),
            tokens=("word",) * int(lengths[i]) * (kind is Kind.SENTENCES),
            metadata={"i": i},
        )
        for i in range(count)
    ]


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    made = connect(":memory:")
    yield made
    made.close()


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("pooling", ["MrSw", "MwSr", "symm"])
def test_results_are_those_of_a_directory(
    client: QdrantClient, tmp_path: Path, kind: Kind, pooling: str
) -> None:
    stored = items(60, kind)
    local = EmbeddedCatalog(tmp_path / "root", model(pooling), kernel())
    cluster = ClusterCatalog(client, model(pooling), kernel())
    queries = [Query(unit(1000 + n, n), k=7, exact=True) for n in (1, 6, 36)]
    results = []
    for galleries in (local, cluster):
        gallery = galleries.get_or_create("default", kind)
        galleries.writer.write(gallery, stored).result(30)
        results.append(gallery.search(queries, [None, {"i": {"lt": 30}}, None]))
        galleries.close()
    for ours, theirs in zip(*results, strict=True):
        assert [hit.point for hit in ours.hits] == [hit.point for hit in theirs.hits]
        for name in ("score", "score_per_word"):
            np.testing.assert_allclose(
                [getattr(hit, name) for hit in ours.hits],
                [getattr(hit, name) for hit in theirs.hits],
                atol=1e-5,
            )
        assert ours.items == theirs.items


def test_cluster_scores_by_itself_unless_asked(client: QdrantClient) -> None:
    """Its MaxSim is MrSw of images with 36 regions, up to the rounding of stored embeddings."""
    galleries = ClusterCatalog(client, model(), kernel())
    gallery = galleries.get_or_create("default", Kind.IMAGES)
    full = [item for item in items(60, Kind.IMAGES) if len(item.rows) >= 36]
    galleries.writer.write(gallery, full).result(30)
    query = unit(7, 9)
    coarse, exact = (
        gallery.search([Query(query, 5, exact=asked)], [None])[0] for asked in (False, True)
    )
    assert [hit.point for hit in coarse.hits] == [hit.point for hit in exact.hits]
    np.testing.assert_allclose(
        [hit.score for hit in coarse.hits], [hit.score for hit in exact.hits], atol=5e-3
    )
    assert not coarse.exact
    threshold = (exact.hits[2].score_per_word + exact.hits[3].score_per_word) / 2
    above = Query(query, 5, min_score_per_word=threshold)
    assert len(gallery.search([above], [None])[0].hits) == 3
    galleries.close()


def test_items_and_explanations(client: QdrantClient) -> None:
    galleries = ClusterCatalog(client, model(), kernel())
    gallery = galleries.get_or_create("default", Kind.IMAGES)
    one = items(1, Kind.IMAGES)[0]
    galleries.writer.write(gallery, [one]).result(30)
    galleries.writer.write(gallery, [one]).result(30)
    assert gallery.info()["items"] == 1
    back = gallery.items([one.point])[one.point]
    assert (back.id, back.metadata) == (one.id, one.metadata)
    np.testing.assert_array_equal(gallery.rows_of("i0"), one.rows.astype(np.float32))
    query = unit(3, 4)
    np.testing.assert_allclose(
        gallery.similarity(one.point, query), one.rows.astype(np.float32) @ query.T, atol=1e-6
    )
    assert galleries.writer.write(gallery, deletes=["i0", "none"]).result(30) == 1
    assert gallery.similarity(one.point, query).shape == (0, 4)
    with pytest.raises(TeranInputError, match="no item 'i0'"):
        gallery.rows_of("i0")
    with pytest.raises(TeranInputError, match="takes its own snapshots"):
        galleries.snapshot("default")
    galleries.close()


def test_servers_see_each_others_changes(
    client: QdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teran.gallery.cluster.catalog._AGE", 0.0)
    first, second = (ClusterCatalog(client, model(), kernel()) for _ in range(2))
    for name in ("v1", "v2"):
        gallery = first.get_or_create(name, Kind.IMAGES)
        first.writer.write(gallery, [Item(name, unit(1, 36).astype(np.float16))]).result(30)
    first.set_alias("live", "v1")
    assert second.get("live").name == "v1"
    first.set_alias("live", "v2")
    assert second.get("live").name == "v2"
    first.drop("v1")
    with pytest.raises(TeranInputError, match="no gallery 'v1'; there are live, v2"):
        second.get("v1")
    first.close()
    second.close()


def test_another_model_and_foreign_collections_are_refused(client: QdrantClient) -> None:
    first = ClusterCatalog(client, model(), kernel())
    first.get_or_create("mine", Kind.IMAGES)
    first.close()
    vectors = models.VectorParams(size=4, distance=models.Distance.DOT)
    client.create_collection("foreign", vectors)
    client.create_collection(f"{PREFIX}odd", vectors)
    other = ClusterCatalog(client, model(fingerprint="b"), kernel())
    with pytest.raises(GalleryError, match="made with another model"):
        other.get("mine")
    with pytest.raises(GalleryError, match="'teran-odd' is no gallery"):
        other.get("odd")
    assert set(other.info()["unusable"]) == {"mine", "odd"}
    other.close()


def test_absent_cluster_is_reported() -> None:
    """The server starts all the same, and answers when the cluster is there."""
    galleries = ClusterCatalog(connect("http://127.0.0.1:1", timeout=2), model(), kernel())
    for _ in range(2):
        with pytest.raises((GalleryUnreachableError, GalleryBusyError), match="cluster"):
            galleries.get("default")
    galleries.close()


def test_a_silent_cluster_costs_one_time_out() -> None:
    """And is asked again after a while."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        galleries = ClusterCatalog(connect(url, timeout=1), model(), kernel())
        started = time.monotonic()
        for _ in range(64):
            with pytest.raises((GalleryUnreachableError, GalleryBusyError), match="cluster"):
                galleries.get("default")
        assert time.monotonic() - started < 10  # not 64 time-outs
        galleries.close()


def test_a_cluster_that_is_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: now))
    calls = Calls()
    with pytest.raises(GalleryUnreachableError), calls():
        raise ConnectionRefusedError("away")
    with pytest.raises(GalleryBusyError, match="away"), calls():
        pytest.fail("it was asked at once")
    now += 3
    with calls():
        pass
    with calls():
        pass


def test_migration_copies_what_is_missing(client: QdrantClient, tmp_path: Path) -> None:
    local = EmbeddedCatalog(tmp_path / "root", model(), kernel())
    gallery = local.get_or_create("default", Kind.IMAGES)
    stored = items(90, Kind.IMAGES)
    local.writer.write(gallery, stored).result(30)
    with pytest.raises(GalleryError, match="in use by process"):
        migrate(tmp_path / "root", "default", client)
    local.close()
    told: list[tuple[int, int]] = []
    first = migrate(tmp_path / "root", "default", client, lambda *now: told.append(now))
    assert (first.items, first.copied) == (90, 90)
    assert told == [(64, 90), (90, 90)]
    again = EmbeddedCatalog(tmp_path / "root", model(), kernel())
    changed = [Item("i3", unit(999, 36).astype(np.float16)), Item("new", stored[0].rows)]
    again.writer.write(again.get("default"), changed).result(30)
    again.close()
    second = migrate(tmp_path / "root", "default", client)
    assert (second.items, second.copied) == (91, 2)
    cluster = ClusterCatalog(client, model(), kernel())
    live = Item("i5", unit(777, 36).astype(np.float16))
    cluster.writer.write(cluster.get("default"), [live]).result(30)
    assert migrate(tmp_path / "root", "default", client).copied == 0
    np.testing.assert_array_equal(
        cluster.get("default").rows_of("i5"), live.rows.astype(np.float32)
    )
    np.testing.assert_array_equal(
        cluster.get("default").rows_of("i3"), changed[0].rows.astype(np.float32)
    )
    cluster.close()
    with pytest.raises(GalleryError, match="no galleries at"):
        migrate(tmp_path / "absent", "default", client)
