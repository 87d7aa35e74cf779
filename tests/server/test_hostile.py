"""Generated requests that nobody would send by mistake: each is answered, and none harms others."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import grpc
import numpy as np
import psutil
from hypothesis import HealthCheck, given, settings
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from teran.cli.background import BackgroundServer
from teran.supervisor.health import fetch
from tests.server.hostile import (
    INPUTS,
    OF_STRINGS,
    REQUESTS,
    RESULT,
    TYPES,
    USUAL,
    note,
    packed,
    requests,
)
from tests.server.neighbour import Neighbour

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,  # Triton's word for a long `sequence_id`
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""What a caller may be told."""
LONG = 8 << 10
"""Bytes of a request that may not fit into the header which holds an error."""


def test_hostile_requests_harm_nobody(server: BackgroundServer) -> None:
    family = {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}
    neighbour = Neighbour(server.url)
    channel = grpc.insecure_channel(server.url)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    told: dict[str, int] = {}

    @settings(
        max_examples=REQUESTS, database=None,
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
            # Triton puts what is wrong into its errors, of whatever length that is.
            echo = code is grpc.StatusCode.RESOURCE_EXHAUSTED and "metadata size" in details
            assert code in CODES or (echo and request.ByteSize() > LONG), details
            assert code is not grpc.StatusCode.DEADLINE_EXCEEDED or "timeout" in request.parameters
            assert "teran:failed" not in details, "a defect, or a fault of the request's"
            assert "Stub process" not in details
            assert "Failed to process" not in details
            assert "Socket closed" not in details
            assert details

    with channel, neighbour:
        send()
    note("grpc", told, **neighbour.told())
    assert told["OK"] > REQUESTS / 50, "hardly anything got past Triton's own checks"
    assert not neighbour.wrong
    assert not RESULT or neighbour.slowdown <= 2
    assert server.process.poll() is None
    assert server.is_ready()
    assert family <= {p.pid for p in psutil.Process(server.process.pid).children(recursive=True)}


METHODS = (
    "ModelInfer", "ModelConfig", "ModelMetadata", "ModelStatistics", "ModelReady", "ServerReady",
    "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting",
    "LogSettings", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "NoSuchMethod",
)  # fmt: skip


def test_bytes_that_are_no_message_harm_nobody(server: BackgroundServer) -> None:
    """What no library would send: messages cut, changed and made up, to every method."""
    dice = Random(7)
    request = pb.ModelInferRequest(model_name="encode_caption", id="a")
    request.inputs.add(name="caption", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(packed([b"a dog runs"]))
    whole = request.SerializeToString()

    def changed() -> bytes:
        data = bytearray(whole[: dice.choice([len(whole), dice.randrange(len(whole))])])
        for _ in range(min(len(data), dice.randint(0, 3))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data) + dice.randbytes(dice.choice([0, 0, 5, 5000]))

    def send(channel: grpc.Channel) -> str:
        """What came of one message, or of a stream of some."""
        service = "/inference.GRPCInferenceService"
        try:
            if dice.random() < 0.1:
                stream = channel.stream_stream(f"{service}/ModelStreamInfer", bytes, bytes)
                messages = [changed() for _ in range(dice.randint(0, 3))]
                return "OK" if list(stream(iter(messages), timeout=10)) else "no answer"
            call = channel.unary_unary(f"{service}/{dice.choice(METHODS)}", bytes, bytes)
            call(changed(), timeout=10)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    with grpc.insecure_channel(server.url) as channel, Neighbour(server.url) as neighbour:
        told = Counter(send(channel) for _ in range(REQUESTS))
    note("broken messages", told, **neighbour.told())
    assert told["OK"]
    assert "DEADLINE_EXCEEDED" not in told
    assert not neighbour.wrong
    assert server.process.poll() is None
    assert server.is_ready()


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
