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
    TeranPhotoError,
    TeranTimeoutError,
)

_LONGEST = 600
"""Characters of a message: gRPC takes 8 KiB of headers, where some take up twelve bytes."""


def error_response(error: TeranError) -> Any:
    """The response with an error: its status, and the reason where that says too little."""
    message = str(error)
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}… ({len(message)} characters)"
    code, text = pb_utils.TritonError.INTERNAL, mark(Reason.FAILED, message)
    if isinstance(error, TeranPhotoError):
        code, text = pb_utils.TritonError.INVALID_ARG, mark(Reason.PHOTO, message)
    elif isinstance(error, TeranInputError):
        code, text = pb_utils.TritonError.INVALID_ARG, message
    elif isinstance(error, TeranOverloadedError):
        code = pb_utils.TritonError.UNAVAILABLE
        text = mark(Reason.OVERLOADED, message, error.retry_after)
    elif isinstance(error, TeranTimeoutError):
        code, text = pb_utils.TritonError.CANCELLED, message
    elif isinstance(error, GalleryBusyError):
        code, text = pb_utils.TritonError.UNAVAILABLE, mark(Reason.BUSY, message)
    elif isinstance(error, GalleryUnreachableError):
        code, text = pb_utils.TritonError.UNAVAILABLE, message
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code))
