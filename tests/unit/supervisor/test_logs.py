"""Lines of Triton, of gRPC inside it and of models, in both formats."""

import json
import logging
from typing import Any

import pytest

from teran.errors import GalleryBusyError, GalleryError, TeranInputError
from teran.runtime.request_log import RequestLog
from teran.supervisor.logs import LogFormat, ServerLog

TRITON = 'E1124 12:00:00.123456 1234 model_lifecycle.cc:654] "failed to load \\"gallery\\""'
GRPC = "E1124 12:00:00.123456789    1234 ssl_transport_security.cc:1519] Handshake failed"
INFO = 'I1124 12:00:00.123456 1234 server.cc:305] "Waiting"'
CUDA = 'W1124 12:00:00.123456 1234 pinned_memory.cc:283] "Unable to allocate pinned memory"'
TRACES = "[Error] File: otlp_http_exporter.cc:122 [OTLP HTTP Client] ERROR: Export 15 spans"


class Request:
    def __init__(self, identifier: str | bytes) -> None:
        self._identifier = identifier

    def request_id(self) -> str:
        """As pybind does it."""
        text = self._identifier
        return text if isinstance(text, str) else text.decode()


def written(
    capsys: pytest.CaptureFixture[str], line: str, format_: LogFormat = LogFormat.TEXT
) -> str:
    ServerLog(format_).write_on(line)
    return capsys.readouterr().err


def model_line(capsys: pytest.CaptureFixture[str], request: Request, **told: Any) -> str:
    """What a model writes of a request."""
    RequestLog("gallery").request(request, 0.002, **told)
    return capsys.readouterr().err.strip("\n")


@pytest.mark.parametrize("line", [TRITON, GRPC, TRACES])
def test_errors_are_shown(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert written(capsys, line) == line + "\n"
    told = json.loads(written(capsys, line, LogFormat.JSON))
    assert (told["level"], told["source"]) == ("ERROR", "tritonserver")


@pytest.mark.parametrize("line", [INFO, CUDA, "", "a stray line"])
def test_others_are_not(capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert written(capsys, line) == ""


def test_messages_lose_their_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(written(capsys, TRITON, LogFormat.JSON))
    assert told["message"] == 'failed to load "gallery"'
    assert told["file"] == "model_lifecycle.cc:654"


@pytest.mark.parametrize(
    "identifier", ["a\nb", "a\u2028b", "a\x9b31m", "a\x1b[31m", "a b=c", 'a"b']
)
def test_no_id_breaks_a_line_or_forges_a_field(
    capsys: pytest.CaptureFixture[str], identifier: str
) -> None:
    line = model_line(capsys, Request(identifier), error=GalleryError("full"))
    assert json.loads(written(capsys, line, LogFormat.JSON))["request_id"] == identifier
    text = written(capsys, line)
    assert len(text.splitlines()) == 1
    assert text[:-1].isprintable()
    assert text.startswith("error: gallery: full request_id=")
    assert " b=c" not in text.replace('"a b=c"', "")


def test_an_id_that_is_no_text_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    line = model_line(capsys, Request(b"\xff"), error=GalleryError("full"))
    assert json.loads(line)["request_id"] == ""


def test_an_id_has_its_limit(capsys: pytest.CaptureFixture[str]) -> None:
    line = model_line(capsys, Request("x" * 10_000), error=GalleryError("full"))
    assert json.loads(line)["request_id"] == "x" * 64


@pytest.mark.parametrize(
    "line", ['{"level": 30, "source": "x"}', '{"level": "INFO"', '{"level"' + "[" * 100_000]
)
def test_strange_lines_do_no_harm(capsys: pytest.CaptureFixture[str], line: str) -> None:
    for format_ in LogFormat:
        assert written(capsys, line, format_).count("\n") <= 1


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (None, "debug"),
        (TeranInputError("k is 0"), "info"),
        (GalleryBusyError("a snapshot"), "warning"),
        (GalleryError("full"), "error"),
    ],
)
def test_levels(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    shown: str,
) -> None:
    levels = ["error", "warning", "info", "debug"]
    for level in levels:
        monkeypatch.setenv("TERAN_LOG_LEVEL", level)
        line = model_line(capsys, Request("r"), error=error)
        assert bool(line) == (levels.index(level) >= levels.index(shown))


def test_a_defect_has_its_traceback_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = GalleryError("the gallery failed: division by zero")
    try:
        _ = 1 / 0
    except ZeroDivisionError as error:
        told.__cause__ = error
    line = model_line(capsys, Request("r"), error=told)
    assert line.count("Traceback") == 1
    assert "Traceback" not in model_line(capsys, Request("r"), error=GalleryError("full"))


@pytest.fixture(autouse=True)
def _restored() -> Any:
    """`RequestLog` owns its process's logging; here it must not stay."""
    log = logging.getLogger("teran")
    before = (log.handlers, log.propagate, log.level)
    yield
    log.handlers, log.propagate, log.level = before
