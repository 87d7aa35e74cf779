"""What `teran serve` writes: its own lines, Triton's and the models', as text or as JSON.

A model writes JSON on its standard error, which is Triton's, and which the supervisor reads. So
lines of all three come out in one format, and what concerns a request has its id.
"""

import json
import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from teran.commandline import printable

_TRITON_LINE = re.compile(r"([EWIF])\d{4} [\d:.]+ +\d+ (\S+)\] *(.*)")
"""Triton's, and those of gRPC inside it."""
_TRITON_LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
_LIBRARY_ERROR = "[Error] "
"""How OpenTelemetry's library, inside Triton, says that traces can't be delivered."""
_NO_GPU = re.compile(r"CUDA|CudaDriver|pinned|NVML|DCGM")
"""What Triton warns of on every host without a GPU."""


class LogFormat(StrEnum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class ServerLog:
    """Writes the supervisor's own lines to the standard output, all others to the error output."""

    def __init__(self, format_: LogFormat = LogFormat.TEXT, *, verbose: bool = False) -> None:
        """Write in a format; Triton's informational lines only if `verbose`."""
        self._format, self._verbose = format_, verbose

    def say(self, message: str, level: str = "INFO") -> None:
        """One line of the supervisor."""
        if self._format is LogFormat.JSON:
            message = _json({"level": level, "source": "supervisor", "message": message})
        print(message, flush=True)

    def write_on(self, line: str) -> None:
        """A line that Triton's process has written, if it is worth it."""
        if fields := _model_line(line):
            text = _json(fields) if self._format is LogFormat.JSON else _text(fields)
        else:
            match = _TRITON_LINE.match(line)
            if not line or (match and not match[3]):
                return
            is_error = match[1] != "I" if match else line.startswith(_LIBRARY_ERROR)
            if not self._verbose and (not is_error or _NO_GPU.search(line)):
                return
            text = _json(_triton_line(line)) if self._format is LogFormat.JSON else line
        with suppress(OSError, ValueError):  # nobody listens; Triton must not wait for us
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def _json(fields: dict[str, Any]) -> str:
    return json.dumps({"time": datetime.now(UTC).isoformat()} | fields)


def _text(fields: dict[str, Any]) -> str:
    """A model's line, which nothing that a client has sent can break in two."""
    level, source, message, _ = (fields.pop(k, "") for k in ("level", "source", "message", "time"))
    first = f"{str(level).lower()}: {source}: {message}"
    pairs = [f"{key}={_quoted(str(value))}" for key, value in fields.items()]
    return " ".join([printable(first), *map(printable, pairs)])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[\s="]', value) else value


def _model_line(line: str) -> dict[str, Any] | None:
    """What a model has written, or None where another wrote the line."""
    if not line.startswith('{"level"'):
        return None
    with suppress(ValueError, RecursionError):
        fields = json.loads(line)
        if isinstance(fields, dict) and "source" in fields:
            return fields
    return None


def _triton_line(line: str) -> dict[str, Any]:
    match = _TRITON_LINE.match(line)
    if not match:
        level = "ERROR" if line.startswith(_LIBRARY_ERROR) else "INFO"
        return {"level": level, "source": "tritonserver", "message": line}
    message = match[3]
    with suppress(ValueError):  # Triton writes it with quotes, escaped like JSON
        message = str(json.loads(message))
    return {
        "level": _TRITON_LEVELS[match[1]],
        "source": "tritonserver",
        "message": message,
        "file": match[2],
    }
