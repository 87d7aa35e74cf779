"""One call to the server, as metrics, spans and logs see it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

Timeout = float | None
"""Seconds a request may take; None stands for the client's own."""


@dataclass
class Call:
    """What is known of a call, and learnt of it on the way."""

    method: str
    """Of Triton's inference service."""
    request: Any
    """Its message."""
    url: str
    metadata: list[tuple[str, str]] = field(default_factory=list)
    tries: int = 0
    received: int = 0
    """Bytes."""
    request_id: str = ""
    """What client, server and models call it in their logs."""

    @classmethod
    def of(cls, method: str, request: Any, url: str, metadata: Sequence[tuple[str, str]]) -> "Call":
        """A call that has not begun; an inference request without an id gets one."""
        identifier = ""
        if method == "ModelInfer":
            identifier = request.id = request.id or token_hex(8)
        return cls(method, request, url, list(metadata), request_id=identifier)

    def set_patience(self, seconds: float) -> None:
        """Tell the models how long the answer is waited for."""
        if self.method == "ModelInfer":
            self.request.parameters["timeout"].int64_param = max(1, int(1e6 * seconds))

    @property
    def name(self) -> str:
        """The Triton model, or the method where there is none."""
        return str(self.request.model_name) if self.method == "ModelInfer" else self.method
