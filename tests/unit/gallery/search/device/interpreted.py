"""The kernel in its compiler's interpreter, on a CPU; `test_fused` runs this with TRITON_INTERPRET.

The interpreter has no products of bf16: for those the kernel is compiled only.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.gallery.item import point_of
from teran.gallery.search.compact import Compact, prepare
from teran.gallery.search.device import DeviceCopy, Precision
from teran.gallery.search.device.choice import fused_works
from teran.gallery.search.device.fused import FusedScan
from teran.gallery.search.device.precision import Kept
from teran.gallery.search.kernels import kernel
from teran.gallery.search.kernels.base import Lanes, Sides
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Query
from teran.gallery.search.searcher import Searcher

CPU = torch.device("cpu")
LONGEST = 128
"""Lanes of a query whose lanes compete."""
PRECISIONS = [one for one in Precision if one is not Precision.BF16]


def unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = random.standard_normal(shape).astype(np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


def expected(
    rows: np.ndarray, queries: list[np.ndarray], lanes: Lanes, *, clamp_rows: bool
) -> np.ndarray:
    """Scores (Q, N) in fp64."""
    scores = np.zeros((len(queries), len(rows)))
    for i, query in enumerate(queries):
        cosine = rows.astype(np.float64) @ query.T.astype(np.float64)
        best_row, best_lane = cosine.max(axis=1), cosine.max(axis=2)
        if Sides.BEST_ROW in lanes.sides:
            scores[i] += (best_row.clip(0) if clamp_rows else best_row).sum(axis=1)
        if Sides.BEST_LANE in lanes.sides:
            scores[i] += (best_lane.clip(0) if lanes.clamp[i] else best_lane).sum(axis=1)
    return scores


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    precision=st.sampled_from(PRECISIONS),
    sides=st.sampled_from([Sides(1), Sides(2), Sides(3)]),
    length=st.integers(1, 300),
    counts=st.lists(st.integers(1, LONGEST), min_size=1, max_size=12),
    clamp_rows=st.booleans(),
    wide=st.booleans(),
)
def test_scores_are_those_of_fp64(
    seed: int,
    precision: Precision,
    sides: Sides,
    length: int,
    counts: list[int],
    clamp_rows: bool,
    wide: bool,
) -> None:
    """Items of any length, also beyond a tile; queries of any, also where blocks are not full."""
    random, dim = np.random.default_rng(seed), 128 if wide else 64
    items = int(random.integers(1, max(2, 600 // length)))
    clamp = random.random(len(counts)) < 0.5
    lanes = Lanes.of([unit(random, one, dim) for one in counts], sides, clamp.tolist())
    rows = Kept.of(torch.from_numpy(unit(random, items, length, dim)), precision)
    into = torch.full((len(counts), items), torch.nan)
    FusedScan(lanes, CPU, precision).scan(rows, into, clamp_rows=clamp_rows)
    # What rounding the vectors does is no business of the kernel's.
    rounded = Kept.of(torch.from_numpy(lanes.values), precision).decoded(precision).numpy()
    right = expected(
        rows.decoded(precision).numpy(),
        np.split(rounded, lanes.starts[1:-1]),
        lanes,
        clamp_rows=clamp_rows,
    )
    assert into.numpy() == pytest.approx(right, abs=2e-5 * (length + LONGEST))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_is_found_to_work(precision: Precision) -> None:
    assert fused_works(CPU, precision)


def test_a_kernel_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of each item left out."""
    scan = FusedScan.scan

    def wrong(self: FusedScan, rows: Kept, into: torch.Tensor, *, clamp_rows: bool) -> None:
        scan(self, Kept(rows.values[:, 1:].contiguous(), None), into, clamp_rows=clamp_rows)

    monkeypatch.setattr(FusedScan, "scan", wrong)
    assert not fused_works.__wrapped__(CPU, Precision.FP16)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["MrSw", "MwSr", "symm"])
def test_searches_find_what_the_host_finds(name: str, kind: Kind) -> None:
    """One query too long for the kernel among them: then torch's operations do it."""
    random, compact = np.random.default_rng(0), Compact(128)
    for i in range(40):
        rows = unit(random, int(random.choice([36, 20, 150])), 128)
        compact.put(point_of(f"i{i}"), i, prepare(rows.astype(np.float16), None))
    copy = DeviceCopy("cpu,cpu")
    for shard in copy._shards:
        shard._scans.fused_up_to = np.inf
    searcher = Searcher(Pooling(name, kind), kernel(), copy)
    for counts in ((1, 12, 40), (12, LONGEST + 1)):
        queries = [Query(unit(random, count, 128), k=10) for count in counts]
        for query, found in zip(queries, searcher.search(compact, queries), strict=True):
            (alone,) = searcher.search(compact, [replace(query, exact=True)])
            assert [hit.point for hit in found.hits] == [hit.point for hit in alone.hits]
