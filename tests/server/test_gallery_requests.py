"""Requests to galleries that are wrong, too large or odd, and what their senders are told."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from teran_client import Entry, TeranClient, TeranInputError, TeranServerError
from teran_client.protocol import infer_request

from teran.cli.background import BackgroundServer, background_server
from teran.contract import pack_texts
from teran.supervisor.canary import connect
from tests.data import images

PHOTOS = images(40, seed=7, longest=50)


@pytest.fixture(scope="module")
def gallery(client: TeranClient) -> str:
    client.index(PHOTOS, gallery="photos")
    return "photos"


def embeddings(rows: int = 3, dim: int = 16) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((1, rows, dim)).astype(np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    return values


def record(text: bytes) -> np.ndarray:
    return pack_texts([text])


Parameters = dict[str, bool | int | float | str]
PHOTOS_ONLY: Parameters = {"gallery": "photos"}
WRONG: list[tuple[dict[str, np.ndarray], Parameters, str]] = [
    ({"embeddings": embeddings()}, {"k": 0, "gallery": "photos"}, "k is 0, expected 1 to 1000"),
    ({"embeddings": embeddings()}, {"k": 1001, "gallery": "photos"}, "k is 1001"),
    ({"embeddings": embeddings()}, {"k": "many", "gallery": "photos"}, "k is 'many', expected int"),
    ({"embeddings": embeddings()}, {"gallery": "absent"}, "there is no gallery 'absent'"),
    ({"embeddings": embeddings()}, {"operation": "dance"}, "operation 'dance'"),
    ({"embeddings": embeddings()}, {"where": "{", "gallery": "photos"}, "where is not JSON"),
    ({"embeddings": embeddings()}, {"where": "[1]", "gallery": "photos"}, "expected an object"),
    ({"embeddings": embeddings() * 2}, {"gallery": "photos"}, "must have norm 1"),
    ({"embeddings": embeddings() * np.nan}, {"gallery": "photos"}, "NaN or infinite"),
    ({"embeddings": embeddings() * 0}, {"gallery": "photos"}, "no row that takes part"),
    ({"record": record(b"{}")}, {"operation": "search", "gallery": "photos"}, "no embeddings"),
    ({"record": record(b'{"id": "none"}')}, {"operation": "like", "gallery": "photos"}, "no item"),
    ({"record": record(b'{"id": "none"}')}, {"operation": "get", "gallery": "photos"}, "no item"),
    ({"record": record(b"{}")}, {"operation": "job", "job": 999}, "there is no job 999"),
    *(
        ({"embeddings": embeddings(), "record": record(data)}, PHOTOS_ONLY, reason)
        for data, reason in (
            (b"nonsense", "record is not JSON"),
            (b"[1]", "expected an object"),
            (b"{}", "id is None"),
            (b'{"id": 3}', "id is 3"),
            (b'{"id": ""}', "id is ''"),
            (b'{"id": "a\\u0000b"}', "holds a line break"),
            (b'{"id": "' + b"x" * 10_000 + b'"}', "has 10000 bytes; at most 1024"),
            (b'{"id": "a", "colour": 1}', "colour"),
            (b'{"id": "a", "uri": 1}', "uri is 1"),
            (b'{"id": "a", "metadata": [1]}', "metadata is"),
            (b'{"id": "a", "metadata": {"x": NaN}}', "NaN is no JSON number"),
            (b'{"id": "a", "metadata": {"x": 1e999}}', "a number that is too large"),
            (b'{"id": "a", "uri": "\\ud800"}', "record's uri is"),
            (b'{"id": "a", "metadata": {"a.b": 1}}', "metadata key 'a.b'"),
            (b'{"id": "a", "metadata": {"x": ' + b"9" * 30 + b"}}", "more than 64 bits"),
            (b'{"id": "a", "metadata": ' + b'{"x":' * 40 + b"1" + b"}" * 40 + b"}", "nested"),
            (b'{"id": "a", "text": "' + b"x" * 70_000 + b'"}', "at most 65536"),
            (b'{"id": "\xff"}', "not JSON"),
        )
    ),
]


@pytest.fixture(scope="module")
def stub(server: BackgroundServer) -> Iterator[object]:
    host, port = server.url.split(":")
    channel, made = connect(host, int(port))
    yield made
    channel.close()


@pytest.mark.parametrize(("inputs", "parameters", "reason"), WRONG)
def test_wrong_requests_are_told_why(
    stub: object,
    client: TeranClient,
    gallery: str,
    inputs: dict[str, np.ndarray],
    parameters: Parameters,
    reason: str,
) -> None:
    request = infer_request("gallery", inputs, ["report"], parameters)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=20)  # type: ignore[attr-defined]
    assert reason in str(caught.value)
    assert client.gallery_info(gallery)["items"] == 40


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.search("", gallery="photos"), "query is empty"),
        (lambda c: c.search("a dog", k=0), "k is 0"),
        (lambda c: c.search(["a dog", PHOTOS[0]]), "one kind at a time"),
        (lambda c: c.search({"a dog"}), "expected a list"),
        (lambda c: c.search("a dog", where={"x": object()}), "where:"),
        (lambda c: c.index(Entry(PHOTOS[0], "")), "expected a string that is not empty"),
        (lambda c: c.index([3]), "item 0 is int"),
        (lambda c: c.index(Entry(PHOTOS[0], "a", metadata={"x": {1}})), "metadata"),
        (lambda c: c.index(Entry(PHOTOS[0], "a", uri="x" * (1 << 20))), "at most 1048576"),
    ],
)
def test_wrong_input_is_refused_before_it_is_sent(
    client: TeranClient, call: Callable[[TeranClient], object], reason: str
) -> None:
    with pytest.raises(TeranInputError, match=reason):
        call(client)


def test_words_in_an_id_decide_nothing(client: TeranClient, gallery: str) -> None:
    for name in ("StubHub-17", "Stub process 'x_0_0' is not healthy", "teran:busy: shared memory"):
        started = time.monotonic()
        with pytest.raises(TeranInputError, match="no item"):
            client.search_like(name, gallery=gallery)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["\u3000wide", "\U0001f469\u200d\U0001f680", "[/photo]", "é/1"])
def test_ids_of_any_script(client: TeranClient, name: str) -> None:
    client.index(Entry(PHOTOS[0], name), gallery="ids")
    assert name in {hit.id for hit in client.search_like(name, gallery="ids")}


def test_ids_of_several_lines_are_refused_before_they_are_sent(client: TeranClient) -> None:
    for name in ("a\nb", "a\u2028b", "\x1b[31m"):
        with pytest.raises(TeranInputError, match=r"item.*id .* holds a line break or another"):
            client.index(Entry(PHOTOS[0], name), gallery="ids")


def test_an_answer_that_is_too_long_is_refused_alone(repository: Path, tmp_path: Path) -> None:
    flags = ("--max-answer-bytes", "3000", "--max-caption-bytes", "100", "--max-rows", "40")
    with (
        background_server(
            repository, *flags, "--gallery", str(tmp_path / "g"), log=tmp_path / "log"
        ) as server,
        TeranClient(server.url, timeout=20) as client,
    ):
        small = [one for one in PHOTOS if len(one) <= 40][:20]
        client.index([Entry(one, one.name, metadata={"text": "x" * 500}) for one in small])
        assert len(client.search("a dog", k=3)) == 3
        with pytest.raises(TeranInputError, match="more than 3000 bytes of records"):
            client.search("a dog", k=20)
        with pytest.raises(TeranInputError, match="caption has 400 bytes; at most 100"):
            client.encode_captions("dog " * 100)
        large = next(one for one in PHOTOS if len(one) > 40)
        with pytest.raises(TeranInputError, match=r"embeddings have \d+ rows; at most 40"):
            client.index(large, gallery="big")


def test_errors_are_server_errors_or_input_errors(client: TeranClient) -> None:
    with pytest.raises(TeranInputError, match="no snapshot"):
        client.restore("absent.tar", "fresh")
    with pytest.raises((TeranInputError, TeranServerError), match="gallery name"):
        client.index(PHOTOS[0], gallery="Not A Name")
