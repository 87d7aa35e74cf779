"""Generated requests that nobody would send by mistake: the server answers each, and harms nobody.

`make hostile` sends ten thousand.
"""

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from teran_client import Entry, SearchResult, TeranClient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from benchmarks import machine
from teran.cli.background import BackgroundServer, background_server
from teran.contract import pack_texts
from teran.supervisor.health import fetch
from teran.supervisor.host import free_port
from tests.conftest import TINY
from tests.data import images

REQUESTS = int(os.environ.get("HOSTILE_REQUESTS", "1500"))
RESULT = os.environ.get("HOSTILE_RESULT")
"""A file for what came of them."""
MODELS = (
    "tokenizer", "textual_encoder", "visual_encoder", "alignment", "gallery", "admission", "stored",
    "encode_caption", "encode_image", "match", "index", "search", "index_captions",
    "search_captions", "change", "nothing",
)  # fmt: skip
TENSORS = (
    "caption", "region_features", "boxes", "region_mask", "input_ids", "attention_mask",
    "word_mask", "region_embeddings", "word_embeddings", "embeddings", "tokens", "record",
    "accepted_at", "ticket",
)  # fmt: skip
TYPES = {
    "BOOL": np.bool_, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16, "FP32": np.float32,
    "FP64": np.float64,
}  # fmt: skip
USUAL = {
    "caption": ("BYTES", (1,)), "region_features": ("FP32", (3, TINY.feature_dim)),
    "boxes": ("FP32", (3, 4)), "region_mask": ("BOOL", (3,)), "input_ids": ("INT64", (5,)),
    "attention_mask": ("INT64", (5,)), "word_mask": ("BOOL", (5,)),
    "region_embeddings": ("FP32", (3, TINY.embed_dim)), "embeddings": ("FP32", (3, TINY.embed_dim)),
    "word_embeddings": ("FP32", (5, TINY.embed_dim)), "tokens": ("UINT8", (3, 6)),
    "record": ("UINT8", (40,)), "accepted_at": ("INT64", (1,)), "ticket": ("INT64", (1,)),
}  # fmt: skip
INPUTS = {
    "tokenizer": ("caption",), "encode_caption": ("caption",), "search": ("caption",),
    "textual_encoder": ("input_ids", "attention_mask", "word_mask"),
    "visual_encoder": ("region_features", "boxes", "region_mask"),
    "encode_image": ("region_features", "boxes", "region_mask"),
    "search_captions": ("region_features", "boxes", "region_mask"),
    "index": ("region_features", "boxes", "region_mask", "record"),
    "index_captions": ("caption", "record"), "change": ("record",), "stored": ("ticket",),
    "admission": ("region_mask",), "gallery": ("embeddings", "record", "tokens", "boxes"),
    "alignment": ("region_embeddings", "word_embeddings"),
    "match": ("caption", "region_features", "boxes", "region_mask"),
}  # fmt: skip
OF_STRINGS = ("tokenizer", "encode_caption", "search", "index_captions", "match")
TEXT = st.text(max_size=40) | st.sampled_from(
    ["", ".", "a dog runs", "\x00", "\x1b[31m", "../../etc/passwd", "a" * 100_000, "😀‍😀", "‮"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.one_of(
    JSON.map(json.dumps),
    st.fixed_dictionaries({"id": TEXT, "metadata": JSON, "uri": TEXT}).map(json.dumps),
    TEXT,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
BYTES = TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=30)
OPERATIONS = (
    "search", "like", "upsert", "delete", "get", "known", "info", "alias", "unalias", "drop",
    "snapshot", "restore", "job", "ping", "",
)  # fmt: skip
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 1200)
PARAMETERS: dict[str, Any] = {
    "operation": st.sampled_from(OPERATIONS) | TEXT,
    "gallery": st.sampled_from(["new", "a b", ".."]) | TEXT,
    "k": NUMBERS, "where": JSON.map(json.dumps) | TEXT, "min_score_per_word": st.floats(),
    "explain": st.booleans(), "exact": st.booleans(), "verbatim": st.booleans(), "bulk": TEXT,
    "alias": TEXT, "snapshot": TEXT, "job": NUMBERS, "timeout": NUMBERS, "priority": NUMBERS,
    "sequence_id": NUMBERS, "shared_memory_region": TEXT,
}  # fmt: skip
VALUES = (0.0, 1.0, -1.0, 1e30, float("nan"), float("inf"), 7e37)


def packed(values: list[bytes]) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


TRITON_S = {"timeout", "priority", "sequence_id", "shared_memory_region"}
"""Parameters that Triton reads itself, and refuses where it does not like them."""
OWN = sorted(set(PARAMETERS) - TRITON_S)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    """Sometimes nearly right, sometimes nothing like it."""
    dice = draw(st.randoms(use_true_random=True))

    def rarely(times: int = 8) -> bool:
        return dice.random() < 1 / times  # hypothesis itself would not let it be rare

    model = dice.choice(MODELS)
    request = pb.ModelInferRequest(model_name=model, id=draw(TEXT) if rarely(4) else "")
    names = INPUTS.get(model, ())
    if model == "gallery":
        names = tuple(name for name in names if rarely(2))
    if rarely():
        names = tuple(draw(st.lists(st.sampled_from(TENSORS), max_size=4)))
    batch = dice.randint(1, 3)
    for name in names:
        datatype, shape = USUAL[name]
        dims = [batch, *shape]
        if rarely(20):
            dims = draw(st.lists(st.integers(-1, 9), max_size=4))
        if rarely(20):
            datatype = draw(st.sampled_from([*TYPES, "BYTES", "UINT8", "", "NONSENSE"]))
        request.inputs.add(name=name, datatype=datatype, shape=dims)
        count = int(np.prod([max(0, one) for one in dims])) if dims else 1
        if name == "record" and datatype == "UINT8" and not rarely(20):
            rows = pack_texts([draw(RECORDS) for _ in range(batch)])
            request.inputs[-1].shape[:] = rows.shape
            data = rows.tobytes()
        elif datatype == "BYTES":
            data = packed([draw(BYTES) for _ in range(min(count, 12))])
        elif datatype == "UINT8":
            data = draw(st.binary(min_size=count, max_size=count))
        elif "embeddings" in name and datatype == "FP32" and draw(st.booleans()):
            rows = np.zeros(count, np.float32)
            rows[:: TINY.embed_dim] = 1  # normalised
            data = rows.tobytes()
        else:
            filling = draw(st.sampled_from(VALUES)) if rarely(4) else 1.0
            with np.errstate(all="ignore"):
                data = np.full(count, filling).astype(TYPES.get(datatype, np.uint8)).tobytes()
        if rarely(20):
            data = data[: draw(st.integers(0, len(data)))] + draw(st.binary(max_size=8))
        request.raw_input_contents.append(data)
    chosen = draw(st.lists(st.sampled_from(OWN), max_size=dice.choice([0, 0, 1, 3]), unique=True))
    if rarely(20):
        chosen += draw(st.lists(st.sampled_from(sorted(TRITON_S)), max_size=2, unique=True))
    for name in chosen:
        value = draw(PARAMETERS[name])
        if rarely():
            value = draw(st.booleans() | NUMBERS | st.floats() | TEXT)
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
        try:
            setattr(request.parameters[name], kind[type(value)], value)
        except ValueError:  # a surrogate, which the wire can't carry
            del request.parameters[name]
    if rarely():
        for name in draw(st.lists(st.sampled_from(["report", "ids", "ticket", *TENSORS]))):
            request.outputs.add(name=name)
    return request


class Neighbour:
    """A good client that searches all the time, and knows what it has to find."""

    def __init__(self, url: str) -> None:
        self._client = TeranClient(url, timeout=30)
        photos = images(30, longest=10)
        self._client.index(
            [Entry(one, f"mine {i}") for i, one in enumerate(photos)], gallery="mine"
        )
        self.expected = self.find()
        self.times: list[float] = []
        self.wrong: list[object] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def find(self) -> SearchResult:
        return self._client.search("a dog runs", k=5, gallery="mine")

    def _work(self) -> None:
        while not self._stop.wait(0.01):
            started = time.monotonic()
            try:
                found = self.find()
                if [hit.id for hit in found.hits] != [hit.id for hit in self.expected.hits]:
                    self.wrong.append(found)
            except Exception as error:
                self.wrong.append(error)
            self.times.append(time.monotonic() - started)

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()


def test_hostile_requests_harm_nobody(server: BackgroundServer) -> None:
    family = {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
    neighbour = Neighbour(server.url)
    alone = []
    for _ in range(200):
        started = time.monotonic()
        neighbour.find()
        alone.append(time.monotonic() - started)
    channel = grpc.insecure_channel(server.url)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    told: dict[str, int] = {}

    @settings(
        max_examples=REQUESTS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(requests())
    def send(request: Any) -> None:
        if "gallery" in request.parameters:  # or to look makes an empty one
            assert request.parameters["gallery"].string_param != "mine"
        try:
            stub.ModelInfer(request, timeout=30)
            told["OK"] = told.get("OK", 0) + 1
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            told[code.name] = told.get(code.name, 0) + 1
            assert code is not grpc.StatusCode.DEADLINE_EXCEEDED or "timeout" in request.parameters
            assert "teran:failed" not in details, "a defect, or a fault of the request's"
            assert "Stub process" not in details
            assert "Failed to process" not in details
            assert "Socket closed" not in details
            assert details

    with channel, neighbour:
        send()
    ratio = float(np.median(neighbour.times) / np.median(alone))
    note("grpc", told, neighbours_search_times_its_usual=round(ratio, 2))
    assert told["OK"] > REQUESTS / 50, "hardly anything got past Triton's own checks"
    assert not neighbour.wrong
    assert server.process.poll() is None
    assert server.is_ready()
    assert family <= {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}


def note(protocol: str, told: dict[str, int], **more: float) -> None:
    """Print what came of it, and add it to the file of results where there is to be one."""
    found = {"requests": sum(told.values()), "answers": told, **more}
    print(protocol, found)
    if RESULT:
        file = Path(RESULT)
        before = json.loads(file.read_text())["results"] if file.exists() else {}
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "make hostile",
            "machine": machine.describe(),
            "results": {**before, protocol: found},
        }
        file.write_text(json.dumps(result, indent=1) + "\n")


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
    folder, port = tmp_path_factory.mktemp("http"), free_port("127.0.0.1")
    flags, ports = ("--http", "--gallery", str(folder / "gallery")), {"http": port}
    with background_server(repository, *flags, log=folder / "log", fixed_ports=ports) as server:
        yield server, port


def test_hostile_requests_over_http_harm_nobody(http_port: tuple[BackgroundServer, int]) -> None:
    server, port = http_port
    family = {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
    told: Counter[int] = Counter()

    @settings(
        max_examples=REQUESTS // 3, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(posts())
    def send(post: Post) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=30)
        with closing(connection):
            connection.request(post.method, post.path, post.body, post.headers)
            answer = connection.getresponse()
            said = answer.read()
        told[answer.status] += 1
        assert answer.status != 200 or post.path not in RESTRICTED
        assert b"teran:failed" not in said, "a defect, or a fault of the request's"
        assert b"Stub process" not in said

    send()
    note("http", {str(status): count for status, count in told.items()})
    assert told[200] > REQUESTS / 200
    assert server.is_ready()
    assert family <= {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}


def test_strings_that_cannot_be_read_harm_nobody(server: BackgroundServer) -> None:
    """Triton's Python backend fails all requests of an execution that holds one of those."""

    def send(seed: int) -> set[tuple[str, bool]]:
        dice, told = Random(seed), set()
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.url, options=options) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(300):
                request = pb.ModelInferRequest(model_name=dice.choice(OF_STRINGS))
                batch = dice.randint(1, 3)
                data = packed([dice.randbytes(dice.randint(1, 30)) for _ in range(batch)])
                torn = data[: dice.randrange(len(data))] + dice.randbytes(dice.randint(0, 8))
                for name in INPUTS[request.model_name]:
                    datatype, shape = USUAL[name]
                    request.inputs.add(name=name, datatype=datatype, shape=[batch, *shape])
                    usual = np.ones((batch, *shape), TYPES.get(datatype, np.uint8)).tobytes()
                    request.raw_input_contents.append(torn if datatype == "BYTES" else usual)
                try:
                    stub.ModelInfer(request, timeout=30)
                except grpc.RpcError as error:
                    told.add((request.model_name, "incomplete string" in (error.details() or "")))
        return told

    with Neighbour(server.url) as neighbour, ThreadPoolExecutor(8) as pool:
        told = set[tuple[str, bool]]().union(*pool.map(send, range(8)))
    assert {model for model, unreadable in told if unreadable} == set(OF_STRINGS)
    assert not neighbour.wrong
    metrics = fetch(server.health_url.replace("/health/ready", "/metrics"), timeout=5)
    assert "teran_model_reloads_total{" not in metrics, "a canary died of it"
