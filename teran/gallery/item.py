"""One entry of a gallery, and what a client may say about it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt

from teran.contract import check_id
from teran.errors import TeranInputError

_SPACE = UUID("8b1f4a9e-6c55-4a53-9c2e-7e1d3f0a5b77")
_KEY = re.compile(r"[\w-]+")
_INTEGERS = range(-(2**63), 2**63)


@dataclass(frozen=True, eq=False)
class Item:
    """An image (its rows are region embeddings) or a sentence (word embeddings)."""

    id: str
    rows: npt.NDArray[np.float16]
    """(R, E), absent rows left out."""
    boxes: npt.NDArray[np.float32] | None = None
    """(R, 4) of an image's regions."""
    tokens: tuple[str, ...] = ()
    """The R word pieces of a sentence."""
    uri: str | None = None
    """Where the image or the document is."""
    text: str | None = None
    """A sentence's text."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0
    """Grows with every write to the gallery; given by the store."""

    @property
    def point(self) -> UUID:
        """The store's key."""
        return point_of(self.id)

    def described(self) -> dict[str, Any]:
        """What a search tells of the item."""
        known = {"id": self.id, "uri": self.uri, "text": self.text}
        return {k: v for k, v in known.items() if v is not None} | {"metadata": self.metadata}


def point_of(identifier: str) -> UUID:
    """The store's key of an id: the same in every gallery and for ever."""
    return uuid5(_SPACE, identifier)


@dataclass(frozen=True)
class Record:
    """What a client sends with an item's embeddings."""

    id: str
    uri: str | None = None
    text: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes | str, most_bytes: int = 65536) -> "Record":
        """Read a record's JSON.

        Raises:
            TeranInputError: it is not one; the message names what is wrong.
        """
        if len(data) > most_bytes:
            raise TeranInputError(
                f"record has {len(data)} bytes; at most {most_bytes} are accepted"
            )
        try:
            content = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise TeranInputError(f"record is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise TeranInputError(f"record is {type(content).__name__}, expected an object")
        unknown = set(content) - {"id", "uri", "text", "metadata"}
        if unknown:
            raise TeranInputError(
                f"record has {sorted(unknown)}; it may have id, uri, text and metadata"
            )
        for key in ("uri", "text"):
            text = content.get(key)
            if not isinstance(text, str | None) or not _is_unicode(text or ""):
                raise TeranInputError(f"record's {key} is {str(text)[:64]}, expected a string")
        metadata = content.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise TeranInputError(f"metadata is {str(metadata)[:64]!r}, expected an object")
        _check_metadata(metadata)
        return cls(check_id(content.get("id")), content.get("uri"), content.get("text"), metadata)


def _check_metadata(value: object, depth: int = 0) -> None:
    if depth > 16:
        raise TeranInputError("metadata is nested more than 16 deep")
    if isinstance(value, dict):
        for key, one in value.items():
            if not _KEY.fullmatch(key):
                raise TeranInputError(
                    f"metadata key {key[:64]!r}: use letters, digits, _ and -, so that it can be "
                    "filtered by"
                )
            _check_metadata(one, depth + 1)
    elif isinstance(value, list):
        for one in value:
            _check_metadata(one, depth + 1)
    elif isinstance(value, float) and not isfinite(value):
        raise TeranInputError("metadata holds a number that is too large")
    elif isinstance(value, int) and value not in _INTEGERS:
        raise TeranInputError(f"metadata holds {value}, which needs more than 64 bits")
    elif isinstance(value, str) and not _is_unicode(value):
        raise TeranInputError("metadata holds text that is not valid Unicode")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def present_rows(embeddings: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows (R,) of (R, E) take part: a zero row is no region, no word.

    Raises:
        TeranInputError: none does, or a value is not finite.
    """
    if not np.isfinite(embeddings).all():
        raise TeranInputError("embeddings hold NaN or infinite values")
    present: npt.NDArray[np.bool_] = np.abs(embeddings).max(axis=1, initial=0) > 0
    if not present.any():
        raise TeranInputError("embeddings have no row that takes part in the alignment")
    return present
