"""One gRPC channel: calls with a deadline, retried where that is safe, errors translated.

Every verb of the client is a pure function of its inputs, so each may be repeated. A call is
repeated where the server could not be reached or one of its model processes was gone; never where
it answered that the request is wrong. A server that has answered before is waited for until the
deadline, as it may be restarting; one that never did is given up after a few tries.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from teran.errors import TeranInputError, TeranServerError, TeranTimeoutError, TeranUnavailableError
from teran_client.call import Call
from teran_client.metrics import ClientMetrics
from teran_client.tracing import ClientTracing

Observer = ClientMetrics | ClientTracing
_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0
_GONE = ("is not healthy", "is not ready", "unknown model", "has no available versions", "Stub")
"""What Triton says of a model whose process died, or that is being loaded."""
_RESTRICTED = "protocol is restricted"
"""What Triton says where a header is missing."""


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
        if not url or "://" in url:
            raise TeranInputError(f"url is {url!r}, expected host:port without a scheme")
        self.url, self._timeout, self._retries, self._tls = url, timeout, retries, tls
        self._metadata: Sequence[tuple[str, str]] = [
            (key.lower(), value) for key, value in (headers or {}).items()
        ]
        self._observers = observers
        self._reached = False
        self._channel: Any = None
        self._stub: Any = None

    def _open(self) -> Any:
        if self._stub is None:
            unlimited = [
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ]
            self._channel = (
                grpc.aio.secure_channel(self.url, self._tls.credentials(), options=unlimited)
                if self._tls
                else grpc.aio.insecure_channel(self.url, options=unlimited)
            )
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub

    async def call(
        self, method: str, request: Any, timeout: float | None = None, *, retry: bool = True
    ) -> Any:
        """Call a method of Triton's inference service.

        Args:
            method: its name.
            request: its message.
            timeout: seconds the call may take, retries included.
            retry: whether to repeat it where the server can't be reached.

        Raises:
            TeranInputError: the server refuses the request.
            TeranUnavailableError: it could not be reached.
            TeranTimeoutError: the time is over.
            TeranServerError: it failed otherwise.
        """
        limit = self._timeout if timeout is None else timeout
        call = Call.of(method, request, self.url, self._metadata)
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.call(call))
            answer = await self._try(call, limit, retry=retry)
            if self._observers:
                call.received = answer.ByteSize()
            return answer

    async def _try(self, call: Call, limit: float, *, retry: bool) -> Any:
        """Call until there is an answer, an error that stays, or no time left."""
        started, delay = time.monotonic(), _FIRST_DELAY
        deadline = started + limit
        while True:
            left = deadline - time.monotonic()
            call.tries += 1
            try:
                answer = await getattr(self._open(), call.method)(
                    call.request, timeout=max(left, 0.001), metadata=call.metadata
                )
                self._reached = True
                _log_call(logging.DEBUG, "answered", call, started)
                return answer
            except grpc.aio.AioRpcError as error:
                failure = _translate(error, call, limit)
            pause = delay * (0.5 + random.random())
            if (
                not retry
                or not isinstance(failure, TeranUnavailableError)
                or (call.tries > self._retries and not self._reached)
                or time.monotonic() + pause >= deadline
            ):
                _log_call(logging.INFO, f"failed: {failure}", call, started)
                raise failure
            _log_call(logging.WARNING, f"trying again: {failure}", call, started)
            await asyncio.sleep(pause)
            delay = min(delay * 2, _LONGEST_DELAY)

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
        if self._channel is not None:
            await self._channel.close()
            self._channel = self._stub = None


def _log_call(level: int, message: str, call: Call, started: float) -> None:
    """Log a step of a call, with its id as a field."""
    if _log.isEnabledFor(level):
        fields = {"call": call.name, "request_id": call.request_id, "tries": call.tries}
        fields["milliseconds"] = round(1e3 * (time.monotonic() - started), 3)
        _log.log(level, "%s: %s", call.name, message, extra=fields)


def _translate(
    error: grpc.aio.AioRpcError, call: Call, limit: float
) -> TeranServerError | TeranInputError:
    code, details, url = error.code(), error.details() or "no details", call.url
    request = f" (request {call.request_id})" if call.request_id else ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TeranTimeoutError(f"no answer from {url} within {limit:g} s{request}")
    if _RESTRICTED in details:  # which Triton calls unavailable, but it stays so
        return TeranInputError(f"the server refuses the request: {details}; see `headers`")
    if code is grpc.StatusCode.UNAVAILABLE or any(mark in details for mark in _GONE):
        return TeranUnavailableError(f"{url} is not available: {details}")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return TeranInputError(f"the server refuses the request: {details}")
    return TeranServerError(f"{url} failed ({code.name.lower()}): {details}{request}")
