"""Spans of a client's calls, for OpenTelemetry, where they are asked for.

The server's spans become their children, where it traces (`teran serve --trace-url`), as every call
carries its context in W3C's `traceparent`.

Example:
    >>> client = TeranClient(url, tracing=ClientTracing())
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from teran.extras import needs
from teran_client.call import Call


class ClientTracing:
    """Makes a span of every call, a child of the one that is current where the call is made."""

    def __init__(self, tracer_provider: Any = None) -> None:
        """Make spans.

        Args:
            tracer_provider: an `opentelemetry.trace.TracerProvider`; by default the global one.
        """
        with needs("tracing"):
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        # Triton reads this format only, whatever the process sends to others.
        self._trace, self._inject = trace, TraceContextTextMapPropagator().inject
        self._tracer = trace.get_tracer("teran_client", tracer_provider=tracer_provider)

    @contextmanager
    def call(self, call: Call) -> Iterator[None]:
        """Make the span of one call, which carries its context to the server."""
        attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": f"inference.GRPCInferenceService/{call.method}",
            "server.address": call.url,
            "teran.request_id": call.request_id,
        }
        with self._tracer.start_as_current_span(
            call.name, kind=self._trace.SpanKind.CLIENT, attributes=attributes
        ) as span:
            if span.get_span_context().trace_flags.sampled:  # Triton traces whatever has a context
                context: dict[str, str] = {}
                self._inject(context)
                call.metadata.extend(context.items())
            try:
                yield
            finally:
                span.set_attribute("teran.tries", call.tries)
