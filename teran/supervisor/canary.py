"""Canary inferences: the only proof that a model answers, as its ready flag outlives its process.

The canary of a model is its first warm-up sample, read from the published repository.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.grpc import service_pb2, service_pb2_grpc

from teran.contract import Reason, read_mark
from teran.errors import ServingError


class Health(Enum):
    """What a canary found."""

    ALIVE = "alive"
    DEAD = "dead"
    SLOW = "slow"
    """No answer in time: overloaded, or hung."""


@dataclass(frozen=True)
class Canary:
    """One valid request for one model."""

    model: str
    request: Any

    def run(self, stub: Any, timeout: float) -> Health:
        """Send it."""
        try:
            stub.ModelInfer(self.request, timeout=timeout)
        except grpc.RpcError as error:
            if read_mark(error.details() or "").reason == Reason.OVERLOADED:  # so it can answer
                return Health.ALIVE
            slow = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            return Health.SLOW if slow else Health.DEAD
        return Health.ALIVE


def read_canaries(repository: Path) -> list[Canary]:
    """Make a canary for every model of `repository` that has warm-up samples.

    Raises:
        ServingError: the repository is not one, or is damaged.
    """
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise ServingError(f"{repository} is not a model repository; make one with `teran export`")
    canaries = []
    for path in configs:
        try:
            config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
            if config.model_warmup:
                canaries.append(_canary(config, path.parent / "warmup"))
        except (OSError, ValueError, text_format.ParseError) as error:
            raise ServingError(f"{path} is damaged: {error}; export it again") from error
    return canaries


def _canary(config: Any, folder: Path) -> Canary:
    request = service_pb2.ModelInferRequest(model_name=config.name)
    for name, entry in config.model_warmup[0].inputs.items():
        shape = [1, *entry.dims] if config.max_batch_size else list(entry.dims)
        datatype = (
            pb.DataType.Name(entry.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        )
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append((folder / entry.input_data_file).read_bytes())
    return Canary(config.name, request)


def connect(
    host: str, port: int, certificate: Path | None = None, name: str = "localhost"
) -> tuple[Any, Any]:
    """A channel to the server, and the stub that calls it.

    Args:
        host: where it listens.
        port: of gRPC.
        certificate: the one it shows, where it uses TLS.
        name: a name in that certificate.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]
    address = f"{host}:{port}"
    if certificate is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        options.append(("grpc.ssl_target_name_override", name))
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        channel = grpc.secure_channel(address, credentials, options=options)
    return channel, service_pb2_grpc.GRPCInferenceServiceStub(channel)
