"""What a stranger on the network, or another user of the host, can't do."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from teran_client import AsyncTeranClient, Entry, TeranClient, TeranInputError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from teran.cli.background import BackgroundServer, background_server
from teran.contract import ADMIN_KEY_HEADER, WRITE_KEY_HEADER
from teran.secrets import find_key
from tests.data import images
from tests.server.test_supervision import model_process, wait_for

PROGRAM = (sys.executable, "-P", "-m", "teran.cli")
"""As the `teran` command is: -m alone imports from the current directory, as Python does."""
ADMIN = {
    "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(
        name="a", key="/nothing", byte_size=8
    ),
    "SystemSharedMemoryStatus": service_pb2.SystemSharedMemoryStatusRequest(),
    "CudaSharedMemoryStatus": service_pb2.CudaSharedMemoryStatusRequest(),
    "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="match"),
    "TraceSetting": service_pb2.TraceSettingRequest(),
    "LogSettings": service_pb2.LogSettingsRequest(),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("security")
    (made / "numpy.py").write_text("raise SystemExit('imported from where the server was started')")
    (made / "write.key").write_text("write-secret\n")
    return made


@pytest.fixture(scope="module")
def server(repository: Path, folder: Path) -> Iterator[BackgroundServer]:
    """Started in a directory where somebody else has left a module."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        flags = ("--gallery", str(folder / "gallery"), "--write-key-file", "write.key")
        with background_server(repository, *flags, log=folder / "log", program=PROGRAM) as running:
            yield running
    finally:
        os.chdir(before)


def port_of(server: BackgroundServer) -> int:
    return int(server.url.rpartition(":")[2])


def code_of(server: BackgroundServer, method: str, key: str | None = None) -> grpc.StatusCode:
    metadata = [(ADMIN_KEY_HEADER, key)] if key else []
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            getattr(stub, method)(ADMIN[method], metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("method", ADMIN)
def test_administration_needs_the_key(server: BackgroundServer, method: str) -> None:
    for key in (None, "guessed"):
        assert code_of(server, method, key) is grpc.StatusCode.UNAVAILABLE
    with TeranClient(server.url) as client:
        assert client.is_ready()


def test_clients_of_the_same_user_share_memory(
    server: BackgroundServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("teran_client.shared_memory.SMALLEST", 1)
    photos = images(32, longest=36)

    async def run() -> bool:
        async with AsyncTeranClient(server.url) as client:
            await client.encode_images(photos)
            return client._shared.usable and bool(client._shared._all)

    assert asyncio.run(run())


def test_only_the_server_s_user_can_read_its_key(server: BackgroundServer) -> None:
    key = find_key(port_of(server))
    assert key
    assert code_of(server, "SystemSharedMemoryStatus", key) is grpc.StatusCode.OK
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for path in Path(runtime or "/tmp").glob("teran*/*"):
        if path.name == str(port_of(server)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_key_is_on_a_command_line_or_in_a_log(server: BackgroundServer, folder: Path) -> None:
    key = find_key(port_of(server))
    assert key
    family = psutil.Process(server.process.pid).children(recursive=True)
    for process in (psutil.Process(server.process.pid), *family):
        for secret in (key, "write-secret"):
            assert not any(secret in part for part in process.cmdline())
    assert key not in (folder / "log").read_text()
    triton = next(p for p in family if p.name().startswith("tritonserver"))
    assert any(part.startswith("--grpc-restricted-protocol=") for part in triton.cmdline())


def test_the_write_key_comes_from_its_file(server: BackgroundServer) -> None:
    entry = Entry(images(1)[0], "one")
    with TeranClient(server.url) as client, pytest.raises(TeranInputError, match="teran-write-key"):
        client.index(entry)
    with TeranClient(server.url, headers={WRITE_KEY_HEADER: "write-secret"}) as client:
        assert client.index(entry) == "one"
        assert client.delete("one") == 1


def test_http_is_off(server: BackgroundServer, repository: Path, tmp_path: Path) -> None:
    listening = {
        connection.laddr.port
        for process in psutil.Process(server.process.pid).children(recursive=True)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    metrics = int(server.metrics_url.split(":")[2].split("/")[0])
    assert listening == {port_of(server), metrics}
    with background_server(repository, "--http", log=tmp_path / "log", program=PROGRAM):
        line = (tmp_path / "log").read_text()
        port = int(line.split("http 127.0.0.1:")[1].split(",")[0])
        key = find_key(int(line.split("grpc 127.0.0.1:")[1].split(",")[0]))
        assert key
        for process in psutil.process_iter():
            assert key not in " ".join(process.cmdline())
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET /v2/systemsharedmemory/status HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"restricted" in connection.recv(4096)


def test_models_import_nothing_from_where_the_server_was_started(
    server: BackgroundServer, folder: Path
) -> None:
    started = time.monotonic()
    assert model_process(server, "gallery").cwd() != str(folder)
    model_process(server, "gallery").kill()
    assert wait_for(lambda: not server.is_ready(), 10)
    assert wait_for(server.is_ready, 30), time.monotonic() - started


@pytest.mark.parametrize(
    ("flags", "variables", "reason"),
    [
        (["--host", "0.0.0.0"], {}, "say --insecure"),
        (["--write-key-file", "/dev/null"], {}, "/dev/null is empty, which is no key"),
        (["--write-key-file", "/nowhere/key"], {}, "/nowhere/key can't be read"),
        ([], {"TERAN_WRITE_KEY": ""}, "TERAN_WRITE_KEY is empty, which is no key"),
        ([], {"TERAN_ADMIN_KEY": " "}, "TERAN_ADMIN_KEY is empty, which is no key"),
        ([], {"TERAN_ADMIN_KEY": "a b"}, "may have letters, digits and most signs only"),
    ],
)
def test_an_unsafe_start_is_refused(
    repository: Path, flags: list[str], variables: dict[str, str], reason: str
) -> None:
    command = [*PROGRAM, "serve", str(repository), *flags]
    ran = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert reason in ran.stderr
