"""Every kernel against sums and maxima written as plain loops."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.gallery.search.kernels.base import Kernel, Lanes, Rows, RowType, Sides, to_bf16, to_int8
from teran.gallery.search.kernels.native import LIBRARY, Level, NativeKernel
from teran.gallery.search.kernels.portable import PortableKernel


def kernels() -> list[Kernel]:
    levels = (Level.AVX2, Level.AVX512)
    native = [NativeKernel.load(limit=level) for level in levels if LIBRARY.exists()]
    found = {kernel.name: kernel for kernel in native if kernel}
    return [PortableKernel(), *found.values()]


def plain(rows: Rows, lanes: Lanes, clamp_rows: bool) -> np.ndarray:
    """Scores by definition, in fp64."""
    values = rows.float32(slice(None)).astype(float)
    if rows.scale is not None:
        values = values * rows.scale[..., None]
    result = np.zeros((len(lanes), len(rows)))
    for q in range(len(lanes)):
        query = lanes.values[lanes.starts[q] : lanes.starts[q + 1]].astype(float)
        for i, item in enumerate(values):
            cosine = [[float(row @ lane) for lane in query] for row in item]
            if Sides.BEST_ROW in lanes.sides:
                for lane in range(len(query)):
                    best = max(row[lane] for row in cosine)
                    result[q, i] += max(best, 0) if clamp_rows else best
            if Sides.BEST_LANE in lanes.sides:
                for row in cosine:
                    best = max(row)
                    result[q, i] += max(best, 0) if lanes.clamp[q] else best
    return result


def stored(vectors: np.ndarray, kind: RowType) -> Rows:
    if kind is RowType.INT8:
        integers, scale = to_int8(vectors)
        return Rows(integers, kind, scale)
    if kind is RowType.BF16:
        return Rows(to_bf16(vectors), kind)
    return Rows(vectors.astype(np.float16), kind)


@pytest.fixture(scope="module", autouse=True)
def parts() -> Iterator[None]:
    """Divide even small scans among threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teran.gallery.search.kernels.native._SMALLEST_PART", 1)
        yield


@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
@settings(max_examples=60)
@given(
    kind=st.sampled_from(RowType),
    sides=st.sampled_from([Sides.BEST_ROW, Sides.BEST_LANE, Sides.BEST_ROW | Sides.BEST_LANE]),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.sampled_from([64, 128, 320])),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    clamp_rows=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scores_follow_their_definition(
    kernel: Kernel,
    kind: RowType,
    sides: Sides,
    shape: tuple[int, int, int],
    lengths: list[int],
    clamp_rows: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.standard_normal(shape, np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    queries = [random.standard_normal((n, shape[2]), np.float32) / shape[2] for n in lengths]
    lanes = Lanes.of(queries, sides, [bool(random.integers(2)) for _ in queries])
    rows = stored(vectors, kind)
    scores = kernel.scores(rows, lanes, clamp_rows=clamp_rows)
    expected = plain(rows, lanes, clamp_rows)
    lane_error = np.abs(lanes.values).max() / 100 if kind is not RowType.FP16 else 1e-6
    bound = lane_error * np.sqrt(shape[2]) * (sum(lengths) + shape[1])
    np.testing.assert_allclose(scores, expected, atol=bound)
    which = random.permutation(shape[0])[:3].astype(np.int64)
    some = kernel.scores(rows, lanes, clamp_rows=clamp_rows, which=which)
    np.testing.assert_allclose(some, scores[:, which], atol=1e-6)


@pytest.mark.parametrize("kernel", kernels()[1:], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("kind", [RowType.INT8, RowType.FP16])
def test_native_and_portable_agree_closely(kernel: Kernel, kind: RowType) -> None:
    """int8 products are exact in both, so only the order of fp32 sums differs."""
    random = np.random.default_rng(5)
    vectors = random.standard_normal((50, 36, 1024), np.float32) / 32
    queries = [random.standard_normal((n, 1024), np.float32) / 32 for n in (1, 12, 93)]
    lanes = Lanes.of(queries, Sides.BEST_ROW | Sides.BEST_LANE)
    rows = stored(vectors, kind)
    np.testing.assert_allclose(
        kernel.scores(rows, lanes, clamp_rows=False),
        PortableKernel().scores(rows, lanes, clamp_rows=False),
        rtol=1e-5,
        atol=1e-5,
    )


def test_extreme_int8_values_do_not_overflow() -> None:
    rows = Rows(np.full((1, 1, 1024), 255, np.uint8), RowType.INT8, np.ones((1, 1), np.float32))
    lanes = Lanes.of([np.ones((1, 1024), np.float32)], Sides.BEST_ROW)
    for kernel in kernels():
        score = kernel.scores(rows, lanes, clamp_rows=False)[0, 0]
        assert score == pytest.approx(127 * 1024, rel=1e-6), kernel.name


def test_unusable_library_is_no_kernel(tmp_path: Path) -> None:
    (tmp_path / "libscan.so").write_bytes(b"not a library")
    assert NativeKernel.load(path=tmp_path / "libscan.so") is None
    assert NativeKernel.load(path=tmp_path / "absent.so") is None
