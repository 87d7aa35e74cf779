"""Lines of client, server and models about one request, tied together by its id."""

import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from teran_client import Entry, TeranClient, TeranInputError
from teran_client.protocol import caption_inputs, infer_request
from tritonclient.grpc import service_pb2_grpc

from monitoring.local import until
from teran.cli.background import BackgroundServer, background_server
from tests.data import images

SEARCH_MODELS = ["tokenizer", "textual_encoder", "gallery"]


def serve(repository: Path, folder: Path, *flags: str) -> Iterator[tuple[BackgroundServer, Path]]:
    gallery = ("--gallery", str(folder / "gallery"))
    with background_server(repository, "--http", *gallery, *flags, log=folder / "log") as running:
        with TeranClient(running.url) as client:
            client.index([Entry(image, image.name) for image in images(3)])
        yield running, folder / "log"


@pytest.fixture(scope="module")
def json_server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BackgroundServer, Path]]:
    flags = ("--log-format", "json", "--log-level", "debug", "--verbose")
    yield from serve(repository, tmp_path_factory.mktemp("json"), *flags)


def lines_of(log: Path, request_id: str, count: int) -> list[dict[str, Any]]:
    """What the server has written about a request."""
    deadline = time.monotonic() + 10
    while True:
        lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
        found = [line for line in lines if line.get("request_id") == request_id]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, f"{found}, expected {count} lines"
        time.sleep(0.1)


def identifier_of(caplog: pytest.LogCaptureFixture, call: str) -> str:
    found = [one for one in caplog.records if getattr(one, "call", None) == call]
    assert len(found) == 1
    return str(vars(found[0])["request_id"])


def test_a_request_can_be_followed(
    json_server: tuple[BackgroundServer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, log = json_server
    with TeranClient(server.url) as client, caplog.at_level(logging.DEBUG, "teran_client"):
        client.search("a dog runs")
    told = lines_of(log, identifier_of(caplog, "search"), len(SEARCH_MODELS))
    assert [line["source"] for line in told] == SEARCH_MODELS
    assert all(line["message"] == "answered" and line["milliseconds"] > 0 for line in told)
    assert told[-1]["operation"] == "search"


def test_a_refusal_names_its_reason(
    json_server: tuple[BackgroundServer, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, log = json_server
    with (
        TeranClient(server.url) as client,
        caplog.at_level(logging.INFO, "teran_client"),
        pytest.raises(TeranInputError, match="no word to align"),
    ):
        client.encode_captions("!")
    (line,) = lines_of(log, identifier_of(caplog, "encode_caption"), 1)
    assert (line["source"], line["level"]) == ("tokenizer", "INFO")
    assert "no word to align" in line["message"]


def test_nothing_a_client_sends_breaks_a_line(json_server: tuple[BackgroundServer, Path]) -> None:
    server, log = json_server
    outputs = ("word_embeddings", "word_mask", "tokens", "truncated")
    request = infer_request("encode_caption", caption_inputs(["a dog"]), outputs)
    request.id = 'a\nb"\u2028' + "x" * 10_000
    with grpc.insecure_channel(server.url) as channel:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=20)
    told = lines_of(log, request.id[:64], 1)  # every line of the log could be read
    assert told[0]["source"] == "tokenizer"


def test_a_bad_id_or_parameter_over_http_fails_alone(
    json_server: tuple[BackgroundServer, Path],
) -> None:
    server, log = json_server
    words = json.dumps([[0.0] * 16])
    tensor = f'"name": "embeddings", "shape": [1, 1, 16], "datatype": "FP32", "data": {words}'
    caption = '"name": "caption", "shape": [1, 1], "datatype": "BYTES", "data": ["a dog"]'
    bad_id, bad_parameter = b'"id": "\xff", ', b'"parameters": {"where": "\xff"}, '
    for model, inputs in (("gallery", tensor), ("tokenizer", caption)):
        for bad in (bad_id, bad_parameter):
            body = b"{" + bad + b'"inputs": [{' + inputs.encode() + b"}]}"
            request = urllib.request.Request(f"http://{http_of(log)}/v2/models/{model}/infer", body)
            with suppress(urllib.error.HTTPError), urllib.request.urlopen(request, timeout=20):
                pass
    with TeranClient(server.url) as client:
        assert client.search("a dog runs").hits
    told = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    models = [*SEARCH_MODELS, "supervisor"]
    assert not [one for one in told if one["source"] in models and one["level"] == "ERROR"]


def http_of(log: Path) -> str:
    (found,) = re.findall(r"http ([\d.]+:\d+)", log.read_text())
    return str(found)


def test_all_sources_write_json(json_server: tuple[BackgroundServer, Path]) -> None:
    lines = [json.loads(line) for line in json_server[1].read_text().split("\n") if line]
    assert {"supervisor", "tritonserver", "tokenizer"} <= {line["source"] for line in lines}
    assert all(line["time"] and line["level"] and line["message"] for line in lines)


def test_text_shows_refusals_where_asked(repository: Path, tmp_path: Path) -> None:
    with contextmanager(serve)(repository, tmp_path, "--log-level", "info") as (server, log):
        with TeranClient(server.url) as client:
            client.search("a dog runs")
            with pytest.raises(TeranInputError):
                client.search("a dog", gallery="cellar")
        until(lambda: "cellar" in log.read_text(), "the refusal is told of")
        told = [line for line in log.read_text().split("\n") if "request_id=" in line]
        assert len(told) == 1
        assert told[0].startswith("info: gallery: there is no gallery 'cellar'")
        assert "operation=search" in told[0]
