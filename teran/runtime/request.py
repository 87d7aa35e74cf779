"""What Triton's requests say besides tensors. Over HTTP it may be bytes that are no text."""

import json
from typing import Any

from teran.errors import TeranInputError

_LONGEST_ID = 64


def parameters_of(request: Any) -> dict[str, Any]:
    """The parameters of a request.

    Raises:
        TeranInputError: they are not UTF-8.
    """
    try:
        parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
    except ValueError as error:
        raise TeranInputError(f"the request's parameters can't be read: {error}") from error
    return parameters


def items_of(request: Any) -> int:
    """How many items a request of a model that batches has."""
    return int(request.inputs()[0].shape()[0])


def id_of(request: Any) -> str:
    """The beginning of the id its client gave a request; empty where that is not UTF-8."""
    try:
        return str(request.request_id())[:_LONGEST_ID]
    except ValueError:
        return ""
