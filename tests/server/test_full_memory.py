"""The host's shared memory is full."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from teran_client import TeranClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from teran.cli.background import BackgroundServer, background_server

MIB = 1 << 20
PRIVATE = ("unshare", "--mount", "sh", "-c", "mount -t tmpfs -o size=400m shm /dev/shm; exec $0 $@")
"""Runs a command with shared memory of its own."""


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    if subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("shared memory of its own needs root")
    program = (*PRIVATE, sys.executable, "-m", "teran.cli")
    log = tmp_path_factory.mktemp("memory") / "log"
    with background_server(repository, log=log, program=program) as running:
        yield running


@contextmanager
def full_memory(server: BackgroundServer) -> Iterator[None]:
    filler = Path(f"/proc/{server.process.pid}/root/dev/shm/filler")
    disk = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_bsize)
    try:
        yield
    finally:
        filler.unlink()


def encode(server: BackgroundServer, caption: bytes) -> str:
    """What the server says to a caption; empty if it encodes it."""
    value = np.array([[caption]], np.object_)
    tensor = triton.InferInput("caption", value.shape, np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    with triton.InferenceServerClient(server.url) as client:
        try:
            client.infer("encode_caption", [tensor])
        except InferenceServerException as error:
            return str(error.message())
    return ""


def test_no_name_of_a_region_reaches_a_client(server: BackgroundServer) -> None:
    large = b"dog " * (8 * MIB)
    with full_memory(server):
        assert encode(server, b"a dog runs") == ""
        said = encode(server, large)
        assert "shared memory" in said
        assert not re.search(r"teran-\d|shm_region_\w", said), said
    assert "33554432 bytes; at most" in encode(server, large)
    with TeranClient(server.url) as client:
        assert "dog" in client.encode_captions("a dog runs").tokens
