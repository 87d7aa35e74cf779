"""The alignment against a plain loop over every region and word, and its invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.model import Pooling, align

Rows = list[list[float]]


def sets(count: int, longest: int, dim: int, seed: int) -> list[torch.Tensor]:
    """`count` sets of unit vectors, of random lengths."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=random).tolist()
    return [
        torch.nn.functional.normalize(torch.randn(n, dim, generator=random), dim=1) for n in lengths
    ]


def pad(items: list[torch.Tensor], length: int | None = None) -> torch.Tensor:
    length = length or max(len(item) for item in items)
    return torch.stack([torch.nn.functional.pad(i, (0, 0, 0, length - len(i))) for i in items])


def plain_score(regions: torch.Tensor, words: torch.Tensor, mode: Pooling) -> float:
    """One pair as the authors' evaluation sees it: padded to 36 regions and 85 words, in loops."""
    n, m = len(regions), len(words)
    matrix = [[0.0] * max(85, m) for _ in range(max(36, n))]
    for r in range(n):
        for w in range(m):
            matrix[r][w] = float(regions[r].double() @ words[w].double())
    total = sum(sum(row) for row in matrix)
    by_word = sum(max(row[w] for row in matrix) for w in range(m))
    by_region = sum(max(*row, 0.0) for row in matrix[:n])
    match mode:
        case Pooling.MRSW:
            return by_word
        case Pooling.MRAVGW:
            return by_word / m
        case Pooling.MWSR:
            return by_region
        case Pooling.SYMM:
            return by_word + by_region
        case Pooling.SUM:
            return total
        case Pooling.MEAN:
            return total / (len(matrix) * len(matrix[0]))
        case Pooling.SCAN_SENTENCES:
            score = 0.0
            norms = [
                max(math.sqrt(sum(max(matrix[r][w], 0) ** 2 for r in range(n))), 1e-12)
                for w in range(m)
            ]
            for r in range(n):
                logits = [math.exp(max(matrix[r][w], 0.0) / norms[w]) for w in range(m)]
                mixed = sum((logits[w] / sum(logits)) * words[w].double() for w in range(m))
                assert isinstance(mixed, torch.Tensor)
                score += float(regions[r].double() @ mixed / mixed.norm())
            return score


@pytest.mark.parametrize("mode", list(Pooling))
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), longest=st.sampled_from([3, 36, 40]))
def test_equals_plain_loop(mode: Pooling, seed: int, longest: int) -> None:
    images, captions = sets(2, longest, 6, seed), sets(3, 9, 6, seed + 1)
    scores, matrix = align(pad(images), pad(captions), pooling=mode)
    for i, regions in enumerate(images):
        for j, words in enumerate(captions):
            assert float(scores[i, j]) == pytest.approx(plain_score(regions, words, mode), abs=1e-4)
            expected = regions @ words.T
            torch.testing.assert_close(matrix[i, j, : len(regions), : len(words)], expected)


@pytest.mark.parametrize("mode", list(Pooling))
@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), extra=st.integers(1, 30))
def test_score_does_not_depend_on_batch_or_padding(mode: Pooling, seed: int, extra: int) -> None:
    images, captions = sets(3, 40, 5, seed), sets(3, 12, 5, seed + 1)
    together, _ = align(pad(images, 40 + extra), pad(captions, 12 + extra), pooling=mode)
    alone, _ = align(images[1][None], captions[2][None], pooling=mode)
    assert float(together[1, 2]) == pytest.approx(float(alone[0, 0]), abs=1e-4)


@pytest.mark.parametrize("mode", list(Pooling))
def test_absent_words_and_regions_score_zero(mode: Pooling) -> None:
    images, captions = pad(sets(2, 5, 4, 0)), pad(sets(2, 5, 4, 1))
    images[1], captions[1] = 0.0, 0.0
    scores, matrix = align(images, captions, pooling=mode)
    assert scores[0, 1] == scores[1, 0] == scores[1, 1] == 0.0
    assert not matrix[1].any()
    assert not matrix[:, 1].any()


def test_masks_and_zero_rows_mean_the_same() -> None:
    images, captions = pad(sets(2, 8, 4, 0), 8), pad(sets(2, 6, 4, 1), 6)
    region_mask, word_mask = images.norm(dim=-1) > 0, captions.norm(dim=-1) > 0
    noisy = images + 5.0 * (~region_mask)[..., None]
    expected, _ = align(images, captions)
    scores, _ = align(noisy, captions, region_mask, word_mask)
    torch.testing.assert_close(scores, expected)
