"""The scan on a device, run on the CPU: the same operations, without the speed."""

import numpy as np
import pytest

from teran.errors import GalleryError
from teran.gallery.item import point_of
from teran.gallery.search.compact import Compact, prepare
from teran.gallery.search.device import DeviceCopy, Precision
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Query
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


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["MrSw", "MwSr", "symm"])
def test_finds_what_the_host_finds(
    name: str, kind: Kind, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teran.gallery.search.device._BLOCK", 1 << 14)  # several blocks a chunk
    random = np.random.default_rng(0)
    compact, pooling = filled(random, 300), Pooling(name, kind)
    allowed = [random.random(len(chunk)) < 0.5 for chunk in compact.chunks]
    queries = [Query(unit(random, n), k=10) for n in (1, 12, 40)]
    queries.append(Query(unit(random, 7), k=10, allowed=allowed))
    on_device = Searcher(pooling, kernel(), DeviceCopy("cpu", precision))
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


def test_absent_devices_and_precisions_are_refused() -> None:
    for device, precision in (("cuda:99", "fp16"), ("nonsense", "fp16"), ("cpu", "fp3")):
        with pytest.raises(GalleryError, match="can't be kept on"):
            DeviceCopy(device, precision)
