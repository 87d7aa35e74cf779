"""What a failed call means: which of our errors it is, and whether calling again may help.

The status decides, then the reason that our models put in front of their errors. Of Triton's own
texts only those are read that no status tells apart, and only from their beginning, where nothing
stands that a client has written.
"""

import re
from dataclasses import dataclass
from enum import Enum, auto

import grpc

from teran.contract import Reason, read_mark
from teran.errors import (
    TeranInputError,
    TeranOverloadedError,
    TeranPhotoError,
    TeranServerError,
    TeranTimeoutError,
    TeranUnavailableError,
)
from teran_client.call import Call

_STEP = re.compile(r"(in ensemble '\w+', )*(\[request id: [^\]]*\] )?")
"""What Triton puts in front of an error."""
_CRASHED = re.compile(
    r"(Failed to process the request\(s\) [^,]*, message: )?Stub process ('(\w+?)_\d+_\d+' )?is not"
)
_LOADING = re.compile(
    r"Request for unknown model: '\w+' (has no available versions|version \d+ is not at ready)"
    r"|Server is stopping|Server not ready"
)
_FULL = re.compile(r"Exceeds maximum queue size")
"""Of models that Triton's own backends run, which have nothing else to refuse with."""
_RESTRICTED = re.compile(r"This protocol is restricted")
_UNREACHED = re.compile(
    r"(failed to connect to all addresses|connections to all backends failing|errors resolving)"
)


class Outcome(Enum):
    """What became of a request that failed."""

    FINAL = auto()
    """It would fail again."""
    REFUSED = auto()
    """It was not begun, and may be sent again."""
    LOST = auto()
    """It may have been done, or not."""
    CRASHED = auto()
    """The process of a model died while it had it."""


@dataclass(frozen=True)
class Failure:
    """A failed call."""

    error: TeranServerError | TeranInputError
    outcome: Outcome = Outcome.FINAL


def read_failure(error: grpc.aio.AioRpcError, call: Call, limit: float) -> Failure:
    """Tell what a failure means.

    Args:
        error: what gRPC says.
        call: what was called.
        limit: seconds it had.
    """
    code, details, url = error.code(), error.details() or "no details", call.url
    prefix = _STEP.match(details)
    reason, retry_after, text = read_mark(details[prefix.end() :] if prefix else details)
    named = f" (request {call.request_id})" if call.request_id else ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(TeranTimeoutError(f"no answer from {url} within {limit:g} s{named}"))
    if code is grpc.StatusCode.CANCELLED:  # not by us: a server that stops lets go of its requests
        called_off = TeranUnavailableError(f"{url} called off the request: {text}{named}")
        return Failure(called_off, Outcome.LOST)
    if code is grpc.StatusCode.INVALID_ARGUMENT and reason == Reason.PHOTO:
        return Failure(TeranPhotoError(f"the server refuses the photo: {text}"))
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return Failure(TeranInputError(f"the server refuses the request: {text}"))
    full = reason is None and _FULL.match(text)
    if code is grpc.StatusCode.UNAVAILABLE and (reason == Reason.OVERLOADED or full):
        overloaded = TeranOverloadedError(f"{url} is overloaded: {text}{named}", retry_after)
        return Failure(overloaded, Outcome.REFUSED)
    unavailable = TeranUnavailableError(f"{url} is not available: {text}")
    if _LOADING.match(text) or (code is grpc.StatusCode.UNAVAILABLE and reason):
        return Failure(unavailable, Outcome.REFUSED)
    if code is grpc.StatusCode.UNAVAILABLE:
        if _RESTRICTED.match(text):  # which stays so
            refused = TeranInputError(f"the server refuses the request: {text}; see `headers`")
            return Failure(refused)
        reached = not _UNREACHED.match(text)
        return Failure(unavailable, Outcome.LOST if reached else Outcome.REFUSED)
    if reason is None and (crash := _CRASHED.match(text)):
        unavailable = TeranUnavailableError(
            f"{url} is not available: {crash[3] or 'a model'} has died"
        )
        return Failure(unavailable, Outcome.CRASHED)
    return Failure(TeranServerError(f"{url} failed ({code.name.lower()}): {text}{named}"))
