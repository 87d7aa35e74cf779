"""Searches against scoring everything with the model's own alignment."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.gallery.item import point_of
from teran.gallery.search.compact import Compact, prepare
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.pruning import Basis
from teran.gallery.search.query import Query, SearchResult
from teran.gallery.search.searcher import Searcher
from teran.model.alignment import align

DIM = 256


def vectors(random: np.random.Generator, count: int, rank: int, noise: float) -> np.ndarray:
    """Unit vectors near a subspace of `rank` dimensions, which is the same for all."""
    axes = np.random.default_rng(99).standard_normal((rank, DIM))
    found = random.standard_normal((count, rank)) @ axes
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    found += noise / np.sqrt(DIM) * random.standard_normal((count, DIM))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    result: np.ndarray = found.astype(np.float32)
    return result


def gallery(items: dict[str, np.ndarray], basis: Basis | None = None) -> Compact:
    compact = Compact(DIM)
    compact.basis = basis
    for version, (name, rows) in enumerate(items.items()):
        compact.put(point_of(name), version, prepare(rows.astype(np.float16), basis))
    return compact


def model_scores(items: dict[str, np.ndarray], query: np.ndarray, pooling: Pooling) -> np.ndarray:
    """The model's own alignment, one pair at a time."""
    scores = []
    for rows in items.values():
        item = torch.from_numpy(rows.astype(np.float16).astype(np.float32))[None]
        one = torch.from_numpy(query)[None]
        pair = (item, one) if pooling.kind is Kind.IMAGES else (one, item)
        scores.append(float(align(*pair, pooling=pooling.name)[0][0, 0]))
    return np.array(scores)


def best(found: SearchResult) -> list[tuple[float, int]]:
    hits = [(hit.score, hit.point.int) for hit in found.hits]
    assert hits == sorted(hits, key=lambda hit: (-hit[0], hit[1]))
    return hits


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("name", ["MrSw", "MwSr", "symm"])
@pytest.mark.parametrize("pruned", [False, True])
def test_best_items_are_the_models(name: str, kind: Kind, pruned: bool) -> None:
    random = np.random.default_rng(3)
    lengths = random.choice([36, 36, 12, 50], 200) if kind is Kind.IMAGES else [5] * 200
    items = {f"i{i}": vectors(random, n, 20, 0.3) for i, n in enumerate(lengths)}
    basis = Basis.fit(np.concatenate(list(items.values()))) if pruned else None
    assert (basis is not None) == pruned
    pooling = Pooling(name, kind)
    searcher, compact = Searcher(pooling, kernel()), gallery(items, basis)
    for words in (1, 7, 40):
        query = vectors(random, words, 20, 0.3)
        expected = model_scores(items, query, pooling)
        found = searcher.search(compact, [Query(query, k=10, exact=True)])[0]
        top = np.argsort(-expected, kind="stable")[:10]
        np.testing.assert_allclose([score for score, _ in best(found)], expected[top], atol=2e-4)
        assert found.exact


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rank=st.integers(2, 60),
    noise=st.floats(0, 1),
    k=st.integers(1, 40),
    copies=st.integers(1, 4),
    name=st.sampled_from(["MrSw", "MwSr", "symm"]),
)
def test_pruning_loses_nothing(
    seed: int, rank: int, noise: float, k: int, copies: int, name: str
) -> None:
    """The pruned result is the exhaustive one, with ties, whatever the data look like."""
    random = np.random.default_rng(seed)
    originals = [vectors(random, int(n), rank, noise) for n in random.choice([36, 9], 60)]
    items = {f"{i}-{copy}": rows for i, rows in enumerate(originals) for copy in range(copies)}
    axes = np.linalg.qr(vectors(random, 64, rank, noise).T)[0]
    basis = Basis(np.ascontiguousarray(axes, np.float32))
    pooling = Pooling(name, Kind.IMAGES)
    query = vectors(random, int(random.integers(1, 20)), rank, noise)
    queries = [Query(query, k, exact=True)]
    pruned = Searcher(pooling, kernel()).search(gallery(items, basis), queries)[0]
    compact = gallery(items)
    everything = Searcher(pooling, kernel()).search(compact, queries)[0]
    assert pruned.exact
    assert everything.exact
    assert len(pruned.hits) == min(k, len(items))
    np.testing.assert_allclose(
        [hit.score for hit in pruned.hits], [hit.score for hit in everything.hits], atol=1e-6
    )
    if compact.chunks and kernel().name.startswith("native"):  # its scores never hang on the batch
        places = [{hit.point for hit in found.hits} for found in (pruned, everything)]
        assert places[0] == places[1]


def test_bounds_skip_most_of_structured_data() -> None:
    random = np.random.default_rng(1)
    items = {f"i{i}": vectors(random, 36, 12, 0.1) for i in range(1500)}
    compact = gallery(items, Basis.fit(np.concatenate(list(items.values()))[:20_000]))
    found = Searcher(Pooling("MrSw", Kind.IMAGES), kernel()).search(
        compact, [Query(vectors(random, 8, 12, 0.1))]
    )[0]
    assert found.exact
    assert found.pruned > 0.8


def test_random_data_are_scanned_and_nearly_exact() -> None:
    """Bounds say nothing about vectors without structure; int8 candidates keep the ranking."""
    random = np.random.default_rng(2)
    items = {f"i{i}": vectors(random, 36, DIM, 3) for i in range(800)}
    assert Basis.fit(np.concatenate(list(items.values()))) is None
    compact, searcher = gallery(items), Searcher(Pooling("MrSw", Kind.IMAGES), kernel())
    queries = [Query(vectors(random, 12, DIM, 3)) for _ in range(20)]
    scanned = searcher.search(compact, queries)
    kept = 0
    for query, found in zip(queries, scanned, strict=True):
        alone = Query(query.rows, exact=True)
        exact = searcher.search(compact, [alone])[0]
        kept += len({hit.point for hit in found.hits} & {hit.point for hit in exact.hits})
        assert not found.exact
    assert kept >= 0.99 * 200


def test_limits_of_a_search() -> None:
    random = np.random.default_rng(4)
    items = {f"i{i}": vectors(random, 36, 20, 0.3) for i in range(30)}
    compact, searcher = gallery(items), Searcher(Pooling("MrSw", Kind.IMAGES), kernel())
    query = vectors(random, 5, 20, 0.3)
    assert len(searcher.search(compact, [Query(query, k=1000)])[0].hits) == 30
    assert searcher.search(Compact(DIM), [Query(query)])[0].hits == []
    scores = [hit.score_per_word for hit in searcher.search(compact, [Query(query, k=30)])[0].hits]
    middle = (scores[9] + scores[10]) / 2
    found = searcher.search(compact, [Query(query, k=30, min_score_per_word=middle)])[0]
    assert [hit.score_per_word for hit in found.hits] == scores[:10]
    allowed = [np.arange(len(chunk)) % 3 == 0 for chunk in compact.chunks]
    some = searcher.search(compact, [Query(query, k=30, allowed=allowed)])[0]
    assert {compact.places[hit.point][1] % 3 for hit in some.hits} == {0}
    assert some.items == len(some.hits) == 10


def test_queries_together_are_queries_alone() -> None:
    random = np.random.default_rng(6)
    items = {f"i{i}": vectors(random, 36, 30, 0.3) for i in range(100)}
    compact, searcher = gallery(items), Searcher(Pooling("symm", Kind.IMAGES), kernel())
    queries = [Query(vectors(random, n, 30, 0.3), k=n) for n in (1, 5, 17, 90)]
    together = searcher.search(compact, queries)
    for query, found in zip(queries, together, strict=True):
        alone = searcher.search(compact, [query])[0].hits
        np.testing.assert_allclose(
            [hit.score for hit in alone], [hit.score for hit in found.hits], atol=1e-6
        )
