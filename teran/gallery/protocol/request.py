"""A request to a gallery, and the checks of what it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.contract import DEFAULT_GALLERY, unpack_texts
from teran.errors import TeranError, TeranInputError
from teran.gallery.item import Record
from teran.gallery.search.kernels.base import Floats
from teran.gallery.search.pruning import NORM_SLACK

_MAX_TOKEN_BYTES = 1024
"""Of one word piece: a tokenizer takes words of a hundred letters at most."""
Arrays = dict[str, npt.NDArray[Any]]
Respond = Callable[["Arrays | TeranError"], None]


@dataclass(frozen=True, eq=False)
class Request:
    """One request; `respond` must be called once, from any thread."""

    parameters: Mapping[str, Any]
    inputs: Arrays
    """`embeddings` (B, R, E), `boxes` (B, R, 4), `tokens` (B, R, T) and `record` (B, L) in packed
    texts, `accepted_at` (B, 1): those given."""
    respond: Respond

    def get(self, name: str, kind: type, default: Any) -> Any:
        """A parameter.

        Raises:
            TeranInputError: it has another type.
        """
        value = self.parameters.get(name, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if value is not default and type(value) is not kind:
            raise TeranInputError(f"{name} is {str(value)[:64]!r}, expected {kind.__name__}")
        return value

    @property
    def default_operation(self) -> str:
        """What is meant where no operation is named."""
        if "embeddings" not in self.inputs:
            return "ping"
        return "upsert" if "record" in self.inputs else "search"

    @property
    def named_operation(self) -> str:
        """The operation, whatever the client wrote there; for logs and metrics."""
        return str(self.parameters.get("operation", self.default_operation))[:64]

    @property
    def gallery(self) -> str:
        name: str = self.get("gallery", str, DEFAULT_GALLERY)
        return name

    def records(self) -> list[bytes]:
        """The records (B).

        Raises:
            TeranInputError: there is none.
        """
        if "record" not in self.inputs:
            raise TeranInputError("the request has no record")
        return unpack_texts(self.inputs["record"])


def read_id(data: bytes) -> str:
    """The id in a record.

    Raises:
        TeranInputError: there is none.
    """
    return Record.parse(data).id


def read_tokens(tokens: npt.NDArray[Any]) -> tuple[str, ...]:
    """Word pieces (R, T) as text.

    Raises:
        TeranInputError: one is not UTF-8, or too long.
    """
    if tokens.shape[1] > _MAX_TOKEN_BYTES:
        raise TeranInputError(
            f"tokens are {tokens.shape[1]} bytes long; at most {_MAX_TOKEN_BYTES} are accepted"
        )
    try:
        return tuple(token.decode() for token in unpack_texts(tokens))
    except UnicodeDecodeError as error:
        raise TeranInputError(f"tokens are not UTF-8: {error}") from error


def normalised(rows: npt.NDArray[Any]) -> Floats:
    """Rows in fp32, checked to be normalised.

    Raises:
        TeranInputError: they are not, so their products are no cosines.
    """
    norms = np.linalg.norm(rows.astype(np.float32), axis=1)
    wrong = np.abs(norms - 1) > NORM_SLACK - 1
    if wrong.any():
        raise TeranInputError(
            f"embeddings must have norm 1; row {int(wrong.argmax())} has {norms[wrong][0]:.4g}"
        )
    return rows.astype(np.float32)


def finite_boxes(boxes: npt.NDArray[Any]) -> Floats:
    """Boxes in fp32.

    Raises:
        TeranInputError: they hold NaN or infinite values.
    """
    if not np.isfinite(boxes).all():
        raise TeranInputError("boxes hold NaN or infinite values")
    return boxes.astype(np.float32)
