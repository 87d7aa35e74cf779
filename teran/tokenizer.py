"""Captions to word pieces: the tokenizer itself, and the rules captions follow when served.

Needs `tokenizers` and numpy, not torch: the server's tokenizer model runs this code.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import (
    Encoding,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from teran.contract import MAX_CAPTION_BYTES
from teran.errors import CheckpointError, TeranInputError

MAX_WORD_PIECES = 96
"""Longest caption in word pieces, [CLS] and [SEP] included; longer ones are truncated."""
WORD_BUCKETS = (16, 32, 64, 96)
"""Lengths captions are padded to. Few of them, because Triton batches equal shapes only."""
_FIRST_READ, _READ_ON = 1024, 4
"""Characters of a caption that are tokenized first, and how many times more where they are few."""
_MOST_READ = 4096
"""Characters that hold enough word pieces of any sentence; to read on would let others wait."""
_MARGIN = 16
"""Characters, more than a special token has."""
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def wordpiece_tokenizer(vocabulary: Path | dict[str, int]) -> Tokenizer:
    """Build BERT's uncased tokenizer from a `vocab.txt` or a token -> id mapping.

    Raises:
        CheckpointError: the file can't be read, or lacks one of BERT's special tokens.
    """
    if isinstance(vocabulary, Path):
        try:
            lines = vocabulary.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"can't read the vocabulary {vocabulary}: {error}") from error
        vocabulary = {token: index for index, token in enumerate(lines)}
    missing = [token for token in _SPECIAL if token not in vocabulary]
    if missing:
        raise CheckpointError(f"the vocabulary lacks {', '.join(missing)}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    return tokenizer


@dataclass(frozen=True)
class TokenBatch:
    """Captions as padded word pieces; W is one of the tokenizer's buckets."""

    input_ids: npt.NDArray[np.int64]
    """(B, W)"""
    attention_mask: npt.NDArray[np.int64]
    """(B, W), 1 where there is a word piece."""
    word_mask: npt.NDArray[np.bool_]
    """(B, W), true for the word pieces that take part in the alignment."""
    tokens: npt.NDArray[np.object_]
    """(B, W) strings, empty at padding."""
    truncated: npt.NDArray[np.bool_]
    """(B, 1), true where word pieces were cut off."""


@dataclass(frozen=True)
class _Pieces:
    """One caption's word pieces, [CLS] and [SEP] included."""

    ids: list[int]
    tokens: list[str]
    truncated: bool


def _is_punctuation(token: str) -> bool:
    """Whether a word piece is punctuation, as BERT's pre-tokenizer sees it."""
    return all(
        unicodedata.category(c).startswith("P") or (c.isascii() and not c.isalnum() and c > " ")
        for c in token
    )


def decode_caption(data: bytes | str, most_bytes: int = MAX_CAPTION_BYTES) -> str:
    """Turn what a client sent into a caption.

    Raises:
        TeranInputError: it is empty, too long, or not UTF-8.
    """
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass"))
    if size > most_bytes:
        raise TeranInputError(f"caption has {size} bytes; at most {most_bytes} are accepted")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        text.encode("utf-8")
    except UnicodeError as error:
        raise TeranInputError(f"caption is not valid UTF-8: {error}") from error
    if not text.strip():
        raise TeranInputError("caption is empty")
    return text


class CaptionTokenizer:
    """Tokenizes captions in batches by the serving rules.

    The alignment always drops the last word piece, in training normally the final full stop. So a
    caption that does not end in punctuation gets one, unless it is taken verbatim.
    """

    def __init__(self, tokenizer: Tokenizer, max_word_pieces: int = MAX_WORD_PIECES) -> None:
        """Wrap `tokenizer`, which gets no truncation or padding of its own.

        Raises:
            CheckpointError: it has no full stop.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        stop = tokenizer.token_to_id(".")
        if stop is None:
            raise CheckpointError("the tokenizer's vocabulary has no full stop")
        self._stop: int = stop
        self._limit = min(max_word_pieces, MAX_WORD_PIECES)
        self._buckets = [*(w for w in WORD_BUCKETS if w < self._limit), self._limit]

    def encode(self, captions: Sequence[str], verbatim: bool = False) -> TokenBatch:
        """Tokenize captions in one call, and pad them to the bucket of the longest.

        Args:
            captions: decoded captions.
            verbatim: whether to leave out the closing full stop. A verbatim caption may end up
                without a word to align, and then scores 0.

        Raises:
            TeranInputError: a caption holds no word that could be aligned, or is no sentence.
        """
        return self._pad([self._close(one, verbatim) for one in self._encode(captions)])

    def _encode(self, captions: Sequence[str]) -> list[Encoding]:
        """Captions as pieces: all, or more than are kept, as long ones are not read to their end.

        What was read of a caption may end within a word or a special token, so what stands at its
        end does not count.

        Raises:
            TeranInputError: one is long, and hardly any words.
        """
        result: dict[int, Encoding] = {}
        left, length = list(range(len(captions))), _FIRST_READ
        while left:
            encodings = self._tokenizer.encode_batch([captions[i][:length] for i in left])
            result |= {
                i: encoding
                for i, encoding in zip(left, encodings, strict=True)
                if len(captions[i]) <= length or self._is_enough(encoding, length)
            }
            left = [i for i in left if i not in result]
            if left and length >= _MOST_READ:
                raise TeranInputError(
                    f"caption has {len(captions[left[0]])} characters, of which the first {length} "
                    f"hold fewer than {self._limit} word pieces: it is no sentence"
                )
            length *= _READ_ON
        return [result[i] for i in range(len(captions))]

    def _is_enough(self, encoding: Encoding, length: int) -> bool:
        if len(encoding) <= self._limit + 1:
            return False
        ends_in_last_word = encoding.word_ids[self._limit] == encoding.word_ids[-2]
        return not ends_in_last_word and encoding.offsets[self._limit][1] <= length - _MARGIN

    def _pad(self, rows: Sequence[_Pieces]) -> TokenBatch:
        """Pad captions to the bucket of the longest."""
        longest = max(len(row.ids) for row in rows)
        shape = (len(rows), next(width for width in self._buckets if longest <= width))
        input_ids = np.zeros(shape, np.int64)
        tokens = np.full(shape, "", dtype=np.object_)
        for i, row in enumerate(rows):
            input_ids[i, : len(row.ids)] = row.ids
            tokens[i, : len(row.ids)] = row.tokens
        position = np.arange(shape[1])
        lengths = np.array([len(row.ids) for row in rows])[:, None]
        return TokenBatch(
            input_ids,
            (position < lengths).astype(np.int64),
            (position > 0) & (position < lengths - 2),
            tokens,
            np.array([[row.truncated] for row in rows]),
        )

    def _close(self, encoding: Encoding, verbatim: bool) -> _Pieces:
        """Cut a caption to the limit and, unless verbatim, end it in punctuation.

        Raises:
            TeranInputError: it holds no word that could be aligned.
        """
        ids, tokens = encoding.ids[:-1], encoding.tokens[:-1]
        truncated = len(ids) >= self._limit
        if truncated:
            ids, tokens = ids[: self._limit - 1], tokens[: self._limit - 1]
        if not verbatim:
            if len(ids) > 1 and not _is_punctuation(tokens[-1]):
                truncated = truncated or len(ids) > self._limit - 2
                ids = [*ids[: self._limit - 2], self._stop]
                tokens = [*tokens[: self._limit - 2], "."]
            if len(ids) < 3:
                raise TeranInputError("caption has no word to align")
        return _Pieces([*ids, encoding.ids[-1]], [*tokens, encoding.tokens[-1]], truncated)
