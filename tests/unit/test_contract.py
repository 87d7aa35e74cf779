"""What client and server agree on."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teran.contract import pack_texts, unpack_texts

TEXTS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30))


@given(TEXTS)
def test_packed_texts_are_unpacked(texts: list[str]) -> None:
    data = [text.encode() for text in texts]
    rows = pack_texts(data)
    assert rows.dtype == np.uint8
    assert rows.shape == (len(data), max([1, *map(len, data)]))
    assert unpack_texts(rows) == data


def test_rows_without_any_byte_are_empty_texts() -> None:
    assert unpack_texts(np.zeros((2, 0), np.uint8)) == [b"", b""]
