"""One gRPC channel: calls with a deadline, retried where that is safe, errors translated.

A call is repeated where it was refused for the moment or its answer was lost; never where the
server says that the request is wrong. What is not idempotent is repeated only where it surely was
not begun, and what model processes die of only a few times. An overloaded server is asked again
when it says so, with jitter; where somebody waits, only as long as most calls succeed, so that
repetition does not feed the overload. Calls that a server was away for come back together when it
is there again; they go on, as it has done nothing for them yet. A server that has answered before
is waited for until the deadline, as it may be restarting; one that never did is given up after a
few tries.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from teran.errors import (
    TeranError,
    TeranInputError,
    TeranOverloadedError,
    TeranServerError,
    TeranUnavailableError,
)
from teran_client.address import CHANNEL_OPTIONS, target
from teran_client.call import Call
from teran_client.failures import Failure, Outcome, read_failure
from teran_client.metrics import ClientMetrics
from teran_client.tracing import ClientTracing

Observer = ClientMetrics | ClientTracing
_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0
_MOST_CRASHES = 3
"""So often a process may die of a request, or a connection break over it, as the server may have
died; others die with it, so it is not sent once more."""
_RECOVERY = 2.0
"""Seconds a dead process is left alone: it may answer so until another takes its place."""
_PATIENT_DELAY = 0.1
"""Seconds after which bulk asks an overloaded server again at the latest, if it does not say."""
_MOST_TOKENS, _EARNED = 10.0, 0.1
"""Repetitions a client may spend on overload, and what each answered call earns of one."""
FORKED = (
    "the client was made before this process was forked, and its connection is not here; make one "
    "in every process"
)
_REPEATABLE = {Outcome.REFUSED, Outcome.LOST, Outcome.CRASHED}


@dataclass(frozen=True)
class Tls:
    """Files of a TLS connection; without any, the system's authorities decide."""

    root_certificates: Path | None = None
    private_key: Path | None = None
    certificate_chain: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            TeranInputError: one can't be read.
        """
        paths = (self.root_certificates, self.private_key, self.certificate_chain)
        try:
            contents = [Path(path).read_bytes() if path else None for path in paths]
        except OSError as error:
            raise TeranInputError(f"can't read the TLS file: {error}") from error
        return grpc.ssl_channel_credentials(*contents)


class Channel:
    """A lazily opened channel that belongs to one event loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        retries: int,
        tls: Tls | None,
        headers: Mapping[str, str] | None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._target = target(url)
        self.url, self._timeout, self._retries, self._tls = url, timeout, retries, tls
        self._metadata: Sequence[tuple[str, str]] = [
            (key.lower(), value) for key, value in (headers or {}).items()
        ]
        self._observers = observers
        self._reached = False
        self._tokens = _MOST_TOKENS
        self._process = 0
        """Which has opened it: in a forked child it would hang."""
        self._channel: Any = None
        self._stub: Any = None

    def _open(self) -> Any:
        self.check_process()
        if self._stub is None:
            self._process = os.getpid()
            self._channel = (
                grpc.aio.secure_channel(
                    self._target, self._tls.credentials(), options=CHANNEL_OPTIONS
                )
                if self._tls
                else grpc.aio.insecure_channel(self._target, options=CHANNEL_OPTIONS)
            )
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub

    async def call(
        self,
        method: str,
        request: Any,
        timeout: float | None = None,
        *,
        retry: bool = True,
        idempotent: bool = True,
        patient: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Call a method of Triton's inference service.

        Args:
            method: its name.
            request: its message.
            timeout: seconds the call may take, retries included.
            retry: whether to repeat it where the server can't be reached.
            idempotent: whether doing it twice is as good as once.
            patient: whether to ask an overloaded server again until the time is over.
            headers: metadata of this call, where the client's own has none of the name.

        Raises:
            TeranError: the connection was opened before this process was forked.
            TeranInputError: the server refuses the request.
            TeranOverloadedError: it has too much to do.
            TeranUnavailableError: it could not be reached.
            TeranTimeoutError: the time is over.
            TeranServerError: it failed otherwise.
        """
        limit = self._timeout if timeout is None else timeout
        known = {name for name, _ in self._metadata}
        own = [entry for entry in (headers or {}).items() if entry[0] not in known]
        call = Call.of(method, request, self.url, [*self._metadata, *own])
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.call(call))
            repeatable = _REPEATABLE if idempotent else {Outcome.REFUSED}
            answer = await self._try(call, limit, repeatable if retry else set(), patient=patient)
            if self._observers:
                call.received = answer.ByteSize()
            return answer

    async def _try(
        self, call: Call, limit: float, repeatable: Set[Outcome], *, patient: bool
    ) -> Any:
        """Call until there is an answer, an error that stays, or no time left."""
        started, delay, crashes, was_away = time.monotonic(), _FIRST_DELAY, 0, False
        deadline = started + limit
        while True:
            left = max(deadline - time.monotonic(), 0.001)
            call.tries += 1
            call.set_patience(left)
            try:
                answer = await getattr(self._open(), call.method)(
                    call.request, timeout=left, metadata=call.metadata
                )
                self._reached = True
                self._tokens = min(_MOST_TOKENS, self._tokens + _EARNED)
                _log_call(logging.DEBUG, "answered", call, started)
                return answer
            except grpc.aio.AioRpcError as error:
                failure = read_failure(error, call, limit)
            crashes += failure.outcome in (Outcome.CRASHED, Outcome.LOST)
            pause = delay * (0.5 + random.random())
            if failure.outcome is Outcome.CRASHED:
                pause += _RECOVERY
            overloaded = isinstance(failure.error, TeranOverloadedError)
            if isinstance(failure.error, TeranOverloadedError):
                self._reached = True
                again = min(delay / 4, _PATIENT_DELAY) if patient else delay
                pause = max(failure.error.retry_after, again) * (0.75 + random.random() / 2)
            was_away |= not overloaded
            if (
                failure.outcome not in repeatable
                or crashes == _MOST_CRASHES
                or (call.tries > self._retries and not self._reached)
                or time.monotonic() + pause >= deadline
                or not (patient or was_away or self._spend())  # last: it counts
            ):
                _log_call(logging.INFO, f"failed: {failure.error}", call, started)
                raise _final(failure, crashes, repeatable)
            _log_call(logging.WARNING, f"trying again: {failure.error}", call, started)
            await asyncio.sleep(pause)
            delay = min(delay * 2, _LONGEST_DELAY)

    def _spend(self) -> bool:
        """Whether an overloaded server may be asked again."""
        enough = self._tokens >= 1
        self._tokens -= enough
        return enough

    async def statistics(self) -> dict[str, tuple[int, float, float]]:
        """Per model: successful requests, and seconds spent in the queue and computing."""
        answer = await self.call("ModelStatistics", service_pb2.ModelStatisticsRequest())
        result = {}
        for entry in answer.model_stats:
            stats = entry.inference_stats
            compute = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
            result[entry.name] = (stats.success.count, stats.queue.ns / 1e9, compute / 1e9)
        return result

    async def close(self) -> None:
        if self._channel is not None and not self.is_inherited:
            await self._channel.close()
            self._channel = self._stub = None

    @property
    def is_inherited(self) -> bool:
        """Whether another process has opened it, of which this one was forked."""
        return self._channel is not None and self._process != os.getpid()

    def check_process(self) -> None:
        """Refuse to go on in a forked child.

        Raises:
            TeranError: this is one.
        """
        if self.is_inherited:
            raise TeranError(FORKED)


def _log_call(level: int, message: str, call: Call, started: float) -> None:
    """Log a step of a call, with its id as a field."""
    if _log.isEnabledFor(level):
        fields = {"call": call.name, "request_id": call.request_id, "tries": call.tries}
        fields["milliseconds"] = round(1e3 * (time.monotonic() - started), 3)
        _log.log(level, "%s: %s", call.name, message, extra=fields)


def _final(failure: Failure, crashes: int, repeatable: Set[Outcome]) -> TeranError:
    """The error of a call that is not repeated, which says why where that matters."""
    if crashes == _MOST_CRASHES:
        died = failure.outcome is Outcome.CRASHED
        kind = TeranServerError if died else TeranUnavailableError
        return kind(f"{failure.error}, {crashes} times with this request")
    if failure.outcome in (Outcome.LOST, Outcome.CRASHED) and repeatable == {Outcome.REFUSED}:
        return TeranUnavailableError(f"{failure.error}; it may have been done all the same")
    return failure.error
