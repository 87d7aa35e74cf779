"""The scan on a device, run on the CPU: the same operations, without the speed."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from teran.errors import GalleryError
from teran.gallery.item import point_of
from teran.gallery.search.compact import Compact, prepare
from teran.gallery.search.device import DeviceCopy, Precision
from teran.gallery.search.kernels import kernel
from teran.gallery.search.kernels.base import Indices, Lanes
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Query, SearchResult
from teran.gallery.search.searcher import Searcher

DIM = 128


def unit(random: np.random.Generator, count: int) -> np.ndarray:
    rows = random.standard_normal((count, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def filled(random: np.random.Generator, count: int) -> Compact:
    compact = Compact(DIM)
    for i in range(count):
        length = int(random.choice([36, 20, 50]))
        compact.put(point_of(f"i{i}"), i, prepare(unit(random, length).astype(np.float16), None))
    return compact


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["MrSw", "MwSr", "symm"])
def test_finds_what_the_host_finds(
    name: str, kind: Kind, precision: Precision, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "teran.gallery.search.device.portable._BLOCK", 1 << 14
    )  # several blocks a chunk
    random = np.random.default_rng(0)
    compact, pooling = filled(random, 300), Pooling(name, kind)
    allowed = [random.random(len(chunk)) < 0.5 for chunk in compact.chunks]
    queries = [Query(unit(random, n), k=10) for n in (1, 12, 40)]
    queries.append(Query(unit(random, 7), k=10, allowed=allowed))
    on_device = Searcher(pooling, kernel(), DeviceCopy(devices, precision))
    for found, query in zip(on_device.search(compact, queries), queries, strict=True):
        alone = Query(query.rows, query.k, query.allowed, exact=True)
        expected = Searcher(pooling, kernel()).search(compact, [alone])[0]
        kept = {hit.point for hit in found.hits} & {hit.point for hit in expected.hits}
        assert len(kept) >= 9 if precision is Precision.FP8 else len(kept) == 10
        assert found.items == expected.items


def test_empty_gallery_and_few_items() -> None:
    random = np.random.default_rng(1)
    searcher = Searcher(Pooling("MrSw", Kind.IMAGES), kernel(), DeviceCopy("cpu"))
    query = Query(unit(random, 3), k=10)
    assert searcher.search(Compact(DIM), [query])[0].hits == []
    assert len(searcher.search(filled(random, 4), [query])[0].hits) == 4


class Recorded(DeviceCopy):
    """Notes how many queries a scan gets, and what is uploaded."""

    def __init__(self, devices: str) -> None:
        super().__init__(devices)
        self.scans: list[int] = []

    def candidates(self, compact: Compact, lanes: Lanes, *others: Any) -> list[Indices]:
        self.scans.append(len(lanes))
        return super().candidates(compact, lanes, *others)


def points(result: SearchResult) -> list[UUID]:
    return [hit.point for hit in result.hits]


def test_an_exact_search_leaves_the_others_to_the_device() -> None:
    random = np.random.default_rng(2)
    compact, device = filled(random, 200), Recorded("cpu")
    searcher = Searcher(Pooling("MrSw", Kind.IMAGES), kernel(), device)
    queries = [Query(unit(random, 5), k=5, exact=i == 1) for i in range(4)]
    found = searcher.search(compact, queries)
    assert device.scans == [3]
    assert [result.exact for result in found] == [False, True, False, False]
    for query, result in zip(queries, found, strict=True):
        alone = searcher.search(compact, [Query(query.rows, query.k, exact=True)])[0]
        assert points(result) == points(alone)


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu,cpu"])
def test_a_device_follows_what_changes(devices: str) -> None:
    """Items that are added, replaced and removed, also where nothing else changes in a chunk."""
    random = np.random.default_rng(3)
    compact = filled(random, 100)
    searcher = Searcher(Pooling("MrSw", Kind.IMAGES), kernel(), DeviceCopy(devices))
    for step in range(6):
        query = Query(unit(random, 5), k=10)
        best = points(searcher.search(compact, [query])[0])
        assert best == points(searcher.search(compact, [replace(query, exact=True)])[0])
        compact.remove(best[0])
        assert points(searcher.search(compact, [query])[0])[:9] == best[1:]
        rows = np.concatenate([query.rows] * 6)[:20].astype(np.float16)
        compact.put(best[1], step, prepare(rows, None))
        assert points(searcher.search(compact, [query])[0])[0] == best[1]


def test_chunks_are_divided_among_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teran.gallery.search.compact._CHUNK_BYTES", 1)  # 64 items a chunk
    compact, device = filled(np.random.default_rng(4), 1500), DeviceCopy("cpu,cpu")
    device.sync(compact)
    first, second = (shard.bytes for shard in device._shards)
    assert len(compact.chunks) > 20
    assert first == pytest.approx(second, rel=0.15)


def test_a_filter_is_uploaded_once() -> None:
    random = np.random.default_rng(5)
    compact, device = filled(random, 200), DeviceCopy("cpu")
    searcher = Searcher(Pooling("MrSw", Kind.IMAGES), kernel(), device)
    masks = [[random.random(len(chunk)) < 0.5 for chunk in compact.chunks] for _ in range(40)]
    query = Query(unit(random, 5), k=5)
    for allowed in masks:
        for _ in range(2):
            some = replace(query, allowed=allowed)
            expected = points(searcher.search(compact, [replace(some, exact=True)])[0])
            assert points(searcher.search(compact, [some])[0]) == expected
    kept = device._shards[0]._masks
    assert 1 < len(kept) < len(masks)
    before = [id(tensor) for _, tensor in kept.values()]
    searcher.search(compact, [replace(query, allowed=masks[-1])])
    assert [id(tensor) for _, tensor in kept.values()] == before


def test_absent_devices_and_precisions_are_refused() -> None:
    for device, precision in (("cuda:99", "fp16"), ("cpu,nonsense", "fp16"), ("cpu", "fp3")):
        with pytest.raises(GalleryError, match="can't be kept on"):
            DeviceCopy(device, precision)
