"""Captions as they are served: the closing full stop, the limits, the buckets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teran.contract import MAX_CAPTION_BYTES
from teran.errors import CheckpointError, TeranInputError
from teran.tokenizer import (
    MAX_WORD_PIECES,
    WORD_BUCKETS,
    CaptionTokenizer,
    TokenBatch,
    decode_caption,
    wordpiece_tokenizer,
)
from tests.conftest import tiny_vocabulary

tokenizer = CaptionTokenizer(wordpiece_tokenizer(tiny_vocabulary()))


def tokens(caption: str, verbatim: bool = False) -> list[str]:
    batch = tokenizer.encode([caption], verbatim)
    return [token for token in batch.tokens[0] if token]


def aligned(caption: str, verbatim: bool = False) -> list[str]:
    batch = tokenizer.encode([caption], verbatim)
    return list(batch.tokens[0][batch.word_mask[0]])


def test_full_stop_is_added_only_where_missing() -> None:
    assert tokens("a dog") == ["[CLS]", "a", "dog", ".", "[SEP]"]
    assert tokens("A dog.") == tokens("a dog")
    assert tokens("a dog!") == ["[CLS]", "a", "dog", "!", "[SEP]"]
    assert aligned("dog") == ["dog"]
    assert aligned("dog", verbatim=True) == []
    assert aligned("a dog", verbatim=True) == ["a"]


def test_captions_without_a_word_are_refused_unless_verbatim() -> None:
    with pytest.raises(TeranInputError, match="no word"):
        tokenizer.encode(["."])
    assert tokens(".", verbatim=True) == ["[CLS]", ".", "[SEP]"]


@pytest.mark.parametrize("words", [1, 12, 13, 28, 29, 60, 61, 92, 93, 94, 200])
@pytest.mark.parametrize("verbatim", [True, False])
def test_buckets_and_truncation(words: int, verbatim: bool) -> None:
    batch = tokenizer.encode([" ".join(["dog"] * words)], verbatim)
    whole = words + 2 + (not verbatim)
    assert batch.input_ids.shape[1] in WORD_BUCKETS
    assert batch.input_ids.shape[1] == min(w for w in WORD_BUCKETS if w >= min(whole, 96))
    assert batch.attention_mask.sum() == min(whole, MAX_WORD_PIECES)
    assert bool(batch.truncated[0, 0]) is (whole > MAX_WORD_PIECES)
    last = int(batch.attention_mask.sum()) - 1
    assert batch.tokens[0, last] == "[SEP]"
    if not verbatim:
        assert batch.tokens[0, last - 1] == "."


Row = tuple[list[int], list[str], bool]


def rows(batch: TokenBatch) -> list[Row]:
    """Every caption without its padding."""
    lengths = batch.attention_mask.sum(axis=1)
    return [
        (batch.input_ids[i, :n].tolist(), batch.tokens[i, :n].tolist(), bool(batch.truncated[i, 0]))
        for i, n in enumerate(lengths)
    ]


def encoded(caption: str) -> Row | str:
    """A caption by itself, or why it can't be used."""
    try:
        return rows(tokenizer.encode([caption]))[0]
    except TeranInputError as error:
        return str(error)


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=5))
def test_a_caption_does_not_depend_on_its_neighbours(captions: list[str]) -> None:
    alone = [encoded(caption) for caption in captions]
    good = [i for i, one in enumerate(alone) if not isinstance(one, str)]
    if len(good) < len(captions):
        with pytest.raises(TeranInputError, match="no word to align"):
            tokenizer.encode(captions)
    if good:
        together = rows(tokenizer.encode([captions[i] for i in good]))
        assert together == [alone[i] for i in good]


@given(
    st.lists(
        st.sampled_from(
            ["dog", "a", "running", ",", "\u4e2d", "x" * 150, "\u0301", "[SEP]", "\0", "é"]
        ),
        min_size=1, max_size=400,
    ),
    st.sampled_from([" ", "", "  "]),
)  # fmt: skip
def test_long_captions_are_cut_as_if_they_had_been_read_to_the_end(
    words: list[str], between: str
) -> None:
    caption = between.join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teran.tokenizer._FIRST_READ", 1 << 30)
        whole = encoded(caption)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teran.tokenizer._FIRST_READ", 20)
        patch.setattr("teran.tokenizer._MOST_READ", 1 << 30)
        cut = encoded(caption)
    assert cut == whole


def test_the_end_of_a_long_caption_is_not_read() -> None:
    """Counted in characters given to the tokenizer, as time is no measure here."""
    read: list[int] = []
    inner = wordpiece_tokenizer(tiny_vocabulary())

    class Counting:
        def encode_batch(self, captions: list[str]) -> object:
            read.extend(map(len, captions))
            return inner.encode_batch(captions)

    counting = CaptionTokenizer(inner)
    counting._tokenizer = Counting()  # type: ignore[assignment]
    counting.encode(["dog " * 16_000] * 64)
    assert sum(read) <= 64 * 1024
    for endless in ("a" * 65_536, " " * 65_533 + "dog", "e\u0301" * 21_845, "\ud55c" * 21_845):
        read.clear()
        with pytest.raises(TeranInputError, match="the first 4096 hold fewer than 96 word pieces"):
            counting.encode([endless] * 64)
        assert sum(read) <= 64 * (1024 + 4096)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"\xff\xfe dog", "UTF-8"),
        (b"x" * (MAX_CAPTION_BYTES + 1), "65537 bytes"),
        ("\ud800", "UTF-8"),
    ],
)
def test_unusable_captions(data: bytes | str, reason: str) -> None:
    with pytest.raises(TeranInputError, match=reason):
        decode_caption(data)


def test_vocabulary_must_have_the_special_tokens() -> None:
    with pytest.raises(CheckpointError, match=r"\[CLS\], \[SEP\]"):
        wordpiece_tokenizer({"[PAD]": 0, "[UNK]": 1})
