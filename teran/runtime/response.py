"""How a model answers a request that it does not do."""

from typing import Any

import triton_python_backend_utils as pb_utils

from teran.contract import Reason, mark
from teran.errors import (
    GalleryBusyError,
    GalleryUnreachableError,
    TeranError,
    TeranInputError,
    TeranOverloadedError,
    TeranTimeoutError,
)


def error_response(error: TeranError) -> Any:
    """The response with an error: its status, and the reason where that says too little."""
    code, text = pb_utils.TritonError.INTERNAL, mark(Reason.FAILED, str(error))
    if isinstance(error, TeranInputError):
        code, text = pb_utils.TritonError.INVALID_ARG, str(error)
    elif isinstance(error, TeranOverloadedError):
        code = pb_utils.TritonError.UNAVAILABLE
        text = mark(Reason.OVERLOADED, str(error), error.retry_after)
    elif isinstance(error, TeranTimeoutError):
        code, text = pb_utils.TritonError.CANCELLED, str(error)
    elif isinstance(error, GalleryBusyError):
        code, text = pb_utils.TritonError.UNAVAILABLE, mark(Reason.BUSY, str(error))
    elif isinstance(error, GalleryUnreachableError):
        code, text = pb_utils.TritonError.UNAVAILABLE, str(error)
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
