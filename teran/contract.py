"""What client and server agree on: what a request may hold at most, and what it is called by."""

import re
import unicodedata
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError

MAX_CAPTION_BYTES = 64 * 1024
"""Longest caption in bytes; longer ones are refused."""
USUAL_REGIONS = 36
"""Regions of an image from bottom-up attention. The authors' evaluation pads smaller ones to it."""
MAX_RESULTS = 1000
"""Most hits of one search."""
QUERY_ROWS = 1024
"""Regions or words of all queries of one search together, unless the server is told otherwise: so
many that nobody waits for seconds behind one search of some 10,000 images."""
MAX_RECORD_BYTES = 1 << 20
"""Longest record of an item in bytes that any server takes; most take less."""
MAX_ID_BYTES = 1024
"""Longest id of an item, in UTF-8."""
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Of files that hold photos, in any case."""
DIGEST = "sha256"
"""The metadata with what a photo's bytes are known by, so that only what has changed is sent."""
DEFAULT_GALLERY = "default"
"""The gallery that is meant where none is named."""
WRITE_KEY_HEADER = "teran-write-key"
"""Metadata that comes with writes, where the server asks for a key."""
SEGMENT_PREFIX = "teran-client-"
"""Of a client's shared memory; the token of its lease follows, and what makes the name unique."""
BULK_PARAMETER = "bulk"
"""Of a request: true where it is one of many that nobody waits for, and may give way to others."""
ADMIN_KEY_HEADER = "triton-grpc-protocol-teran-admin-key"
"""Metadata that comes with calls that load models or change the server, likewise."""


class Reason(StrEnum):
    """Why a model did not answer: in front of its error, whose status alone says too little."""

    BUSY = "busy"
    """It does not do that just now."""
    PHOTO = "photo"
    """The photo can't be used; whatever else there is may be."""
    FAILED = "failed"
    """Through no fault of the request, and it may fail again."""
    OVERLOADED = "overloaded"
    """Too much is waiting already; nothing was begun."""


class Mark(NamedTuple):
    """What an error's text begins with, and the text without it."""

    reason: str | None
    retry_after: float
    """Seconds after which to try again; 0 where nothing is said."""
    text: str


_MARKED = re.compile(r"teran:([a-z]+)(?:=(\d{1,6}\.\d{1,3}))?: (.*)", re.DOTALL)


def mark(reason: Reason, message: str, retry_after: float = 0.0) -> str:
    """An error's text with its reason in front, for machines."""
    hint = f"={retry_after:.3f}" if retry_after else ""
    return f"teran:{reason}{hint}: {message}"


def read_mark(text: str) -> Mark:
    """What `mark` wrote; a text without a mark stays as it is."""
    match = _MARKED.fullmatch(text)
    return Mark(match[1], float(match[2] or 0), match[3]) if match else Mark(None, 0.0, text)


def pack_texts(texts: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    """Texts as galleries take them: (N, L), padded with zeros."""
    length = max(map(len, texts), default=0)
    return np.array(texts, f"S{length or 1}").view(np.uint8).reshape(len(texts), length or 1)


def unpack_texts(rows: npt.NDArray[np.uint8]) -> list[bytes]:
    """The texts in what `pack_texts` made."""
    return [row.tobytes().rstrip(b"\0") for row in rows]


def check_id(identifier: object) -> str:
    """Check an item's id: any text of one line, in any script.

    Raises:
        TeranInputError: it is not a string, empty, too long, or holds control characters.
    """
    if not isinstance(identifier, str) or not identifier:
        raise TeranInputError(f"id is {identifier!r}, expected a string that is not empty")
    size = len(identifier.encode("utf-8", "surrogatepass"))
    if size > MAX_ID_BYTES:
        raise TeranInputError(
            f"id {identifier[:32]!r}... has {size} bytes; at most {MAX_ID_BYTES} are accepted"
        )
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in identifier):
        raise TeranInputError(f"id {identifier!r} holds a line break or another control character")
    return identifier


def is_id(identifier: str) -> bool:
    """Whether an item may have it for its id."""
    try:
        check_id(identifier)
    except TeranInputError:
        return False
    return True
