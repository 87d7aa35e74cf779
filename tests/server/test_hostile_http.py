"""Generated requests over HTTP, with its own ways to be wrong."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.host import free_ports
from tests.server.hostile import BYTES, NUMBERS, RECORDS, REQUESTS, RESULT, note, requests
from tests.server.neighbour import Neighbour

REFUSED = (400, 403, 404, 405, 501, 503)
LONGEST_PATH = 1 << 13
METHODS = ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "NONSENSE")
RESTRICTED = (
    "/v2/repository/index", "/v2/repository/models/tokenizer/unload", "/v2/logging",
    "/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/unregister",
    "/v2/trace/setting",
)  # fmt: skip
PATHS = (
    "/",
    "/v2",
    "/v2/models/search",
    "/v2/models/search/infer",
    "/v2/models/stats",
    *RESTRICTED,
)


@dataclass
class Post:
    """What goes over HTTP."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@st.composite
def posts(draw: st.DrawFn) -> Post:
    """A request as HTTP has it, with its own ways to be wrong; but not in chunks: security.md."""
    request, dice = draw(requests()), draw(st.randoms(use_true_random=True))
    head: dict[str, Any] = {"id": request.id, "inputs": []}
    for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
        entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        head["inputs"].append(entry | {"parameters": {"binary_data_size": len(data)}})
    head["parameters"] = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in request.parameters.items()
        if value.WhichOneof("parameter_choice")
    }
    text = json.dumps(head).encode()
    if dice.random() < 0.05:
        text = draw(BYTES) if dice.random() < 0.5 else draw(RECORDS)
    body, length = text + b"".join(request.raw_input_contents), str(len(text))
    if dice.random() < 0.05:
        body = body[: dice.randint(0, len(body))]
    if dice.random() < 0.05:
        length = draw(NUMBERS.map(str) | st.sampled_from(["", "x", "9" * 40]))
    headers = {"Inference-Header-Content-Length": length}
    if dice.random() < 0.05:
        headers["Content-Encoding"] = dice.choice(["gzip", "deflate", "nonsense"])
    path = f"/v2/models/{quote(request.model_name)}/infer"
    if dice.random() < 0.05:
        path = dice.choice(PATHS) if dice.random() < 0.5 else "/v2/" + quote(draw(BYTES))
    return Post(dice.choice(METHODS) if dice.random() < 0.05 else "POST", path, headers, body)


@pytest.fixture(scope="module")
def http_port(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BackgroundServer, int]]:
    folder, [port] = tmp_path_factory.mktemp("http"), free_ports("127.0.0.1", 1)
    flags, ports = ("--http", "--gallery", str(folder / "gallery")), {"http": port}
    with background_server(repository, *flags, log=folder / "log", fixed_ports=ports) as server:
        yield server, port


def test_hostile_requests_over_http_harm_nobody(http_port: tuple[BackgroundServer, int]) -> None:
    server, port = http_port
    family = {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
    told: Counter[int] = Counter()

    @settings(
        max_examples=REQUESTS // 3, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(posts())
    @example(Post("POST", "/v2/" + "a" * 100_000, {}, b""))
    def send(post: Post) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        with closing(connection):
            try:
                connection.request(post.method, post.path, post.body, post.headers)
                answer = connection.getresponse()
            except ConnectionError:  # it may be closed before all of it was read
                assert len(post.path) > LONGEST_PATH
                told[0] += 1
                return
            said = answer.read()
        told[answer.status] += 1
        unread = answer.status == 500 and (b"arse" in said or b"JSON" in said)  # Triton's word
        assert answer.status in (200, *REFUSED) or unread, said
        assert answer.status != 200 or post.path not in RESTRICTED
        assert b"teran:failed" not in said, "a defect, or a fault of the request's"
        assert b"Stub process" not in said

    neighbour = Neighbour(server.url)
    with neighbour:
        send()
    note(
        "http",
        {str(status or "closed"): count for status, count in told.items()},
        **neighbour.told(),
    )
    assert not neighbour.wrong
    assert not RESULT or neighbour.slowdown <= 2
    assert told[200] > REQUESTS / 200
    assert server.is_ready()
    assert family <= {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
