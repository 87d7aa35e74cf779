"""The word-piece tokenizer, and the one rule captions follow at serving time."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from teran.errors import CheckpointError

MAX_WORD_PIECES = 96
"""Longest caption in word pieces, [CLS] and [SEP] included."""


def wordpiece_tokenizer(vocabulary: Path | dict[str, int]) -> Tokenizer:
    """Build BERT's uncased tokenizer from a `vocab.txt` or a token -> id mapping.

    Raises:
        CheckpointError: the file is missing, or lacks one of BERT's special tokens.
    """
    if isinstance(vocabulary, Path):
        try:
            lines = vocabulary.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"can't read the vocabulary {vocabulary}: {error}") from error
        vocabulary = {token: index for index, token in enumerate(lines)}
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - vocabulary.keys()
    if missing:
        raise CheckpointError(f"the vocabulary lacks {', '.join(sorted(missing))}")
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return tokenizer
