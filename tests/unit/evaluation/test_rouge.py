"""ROUGE-L against a plain count, one by one and all at once."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teran.evaluation.rouge import relevance, rouge_l

SENTENCES = st.lists(st.sampled_from(["a", "Dog", "dog", "runs", "", "."]), max_size=7).map(
    " ".join
)


def common(first: list[str], second: list[str]) -> int:
    lengths = np.zeros((len(first) + 1, len(second) + 1), int)
    for i, j in product(range(len(first)), range(len(second))):
        same = first[i] == second[j]
        lengths[i + 1, j + 1] = (
            lengths[i, j] + 1 if same else max(lengths[i, j + 1], lengths[i + 1, j])
        )
    return int(lengths[-1, -1])


def plain(candidate: str, references: list[str]) -> float:
    words = candidate.lower().split(" ")
    others = [reference.lower().split(" ") for reference in references]
    precision = max(common(words, other) / len(words) for other in others)
    recall = max(common(words, other) / len(other) for other in others)
    if not precision:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


@given(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=4))
def test_equals_a_plain_count(candidate: str, references: list[str]) -> None:
    assert rouge_l(candidate, references) == pytest.approx(plain(candidate, references), rel=1e-12)


def test_precision_and_recall_may_be_of_different_references() -> None:
    precise, short = "a dog runs on the long beach", "dog"
    assert rouge_l("a dog", [precise, short]) == pytest.approx(1.0)
    assert rouge_l("a dog", [precise]) < 1
    assert rouge_l("a cat", ["the dog runs"]) == 0


@given(st.lists(st.lists(SENTENCES, min_size=1, max_size=3), min_size=1, max_size=5))
def test_all_at_once_equal_each_by_itself(images: list[list[str]]) -> None:
    captions = [caption for several in images for caption in several]
    owner = np.repeat(np.arange(len(images)), [len(several) for several in images])
    found = np.concatenate(list(relevance(captions, owner, len(images))))
    expected = [[rouge_l(caption, several) for several in images] for caption in captions]
    assert found.dtype == np.float32
    assert (found == np.array(expected, np.float32)).all()


def test_many_captions_and_words() -> None:
    """More than are compared at a time, and more words than there are characters in a byte."""
    captions = [f"word{i} word{i + 1} word{i + 2}" for i in range(600)]
    found = np.concatenate(list(relevance(captions, np.repeat(np.arange(300), 2), 300)))
    assert found.shape == (600, 300)
    for caption, image in ((0, 0), (599, 299), (300, 149), (7, 200)):
        of_image = captions[2 * image : 2 * image + 2]
        assert found[caption, image] == np.float32(rouge_l(captions[caption], of_image))
