"""`teran serve` through deaths, restarts and wrong starts."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from teran_client import TeranClient, TeranTimeoutError, TeranUnavailableError
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from teran.cli.background import BackgroundServer, background_server
from teran.supervisor.host import free_ports
from tests.conftest import TINY
from tests.data import images

MODELS = ("tokenizer", "visual_encoder", "textual_encoder", "alignment", "gallery")


def children(server: BackgroundServer) -> list[psutil.Process]:
    """Live descendants; a killed process stays a zombie until its parent looks."""
    found = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def model_process(server: BackgroundServer, model: str) -> psutil.Process:
    return next(p for p in children(server) if any(f"{model}_0_0" in part for part in p.cmdline()))


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def replaced(server: BackgroundServer, model: str) -> psutil.Process:
    """The process that is started in the place of a model's, which is killed."""
    old = model_process(server, model)
    old.kill()
    new: list[psutil.Process] = []

    def is_there() -> bool:  # the old one is there for a moment yet
        with suppress(StopIteration, psutil.NoSuchProcess):
            new.append(model_process(server, model))
        return bool(new) and new[-1] != old

    assert wait_for(is_there, 10)
    return new[-1]


@pytest.mark.parametrize("model", MODELS)
def test_killed_model_process_comes_back(
    server: BackgroundServer, client: TeranClient, model: str
) -> None:
    photo = images(1, longest=40)[0]
    expected = client.match(photo, "a dog runs").score
    for _ in range(2):  # Triton treats a second reload of a model unlike the first
        model_process(server, model).kill()
        assert wait_for(lambda: not server.is_ready(), 5), "readiness hides the dead process"
        assert client.match(photo, "a dog runs").score == pytest.approx(expected, abs=1e-5)
        assert wait_for(server.is_ready)
    assert server.process.poll() is None


def test_what_fails_does_not_keep_the_server_from_stopping(
    repository: Path, tmp_path: Path
) -> None:
    """Triton lets go of no request one of whose steps failed while another ran."""
    request = pb.ModelInferRequest(model_name="match")
    features = np.ones((1, 30, TINY.feature_dim), np.float32)
    features[0, 0, 0] = np.nan
    inputs: dict[str, tuple[str, list[int], bytes]] = {
        "caption": ("BYTES", [1, 1], b"\x05\x00\x00\x00a dog"),
        "region_features": ("FP32", [*features.shape], features.tobytes()),
        "boxes": ("FP32", [1, 30, 4], np.full((30, 4), 0.5, np.float32).tobytes()),
        "region_mask": ("BOOL", [1, 30], b"\x01" * 30),
    }
    for name, (datatype, shape, data) in inputs.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    flags = ("--gallery", str(tmp_path / "gallery"), "--shutdown-timeout", "10")
    with background_server(repository, *flags, log=tmp_path / "log") as server:
        with grpc.insecure_channel(server.url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for _ in range(100):
                with pytest.raises(grpc.RpcError) as failed:
                    stub.ModelInfer(request, timeout=10)
                assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        server.process.terminate()
        assert server.process.wait(30) == 0
    assert "Exit timeout" not in (tmp_path / "log").read_text()


def test_hung_model_process_is_replaced(repository: Path, tmp_path: Path) -> None:
    flags = ("--check-interval", "0.5")
    with background_server(repository, *flags, log=tmp_path / "log") as server:
        hung = model_process(server, "tokenizer")
        hung.suspend()
        with TeranClient(server.url) as client:
            with pytest.raises(TeranTimeoutError, match=r"within 0\.5 s"):
                client.encode_captions("a dog", timeout=0.5)
            assert wait_for(lambda: not server.is_ready(), 5), "readiness hides the hung process"
            assert hung.is_running()
            assert wait_for(server.is_ready)
            assert client.encode_captions("a dog").tokens[1] == "a"
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE


def test_a_process_that_dies_while_it_is_loaded_keeps_nobody_waiting(
    repository: Path, tmp_path: Path
) -> None:
    """Triton may wait for it without end: here it takes another one for it that lives."""
    with background_server(repository, log=tmp_path / "log") as server:
        new = replaced(server, "gallery")
        region = next(part for part in new.cmdline() if part.startswith("teran"))
        asleep = [sys.executable, "-c", "import time; time.sleep(600)", region]
        twin = subprocess.Popen(asleep)
        try:
            new.kill()
            assert wait_for(lambda: not server.is_ready(), 10)
            assert wait_for(server.is_ready, 60)
        finally:
            twin.kill()
            twin.wait()


def test_a_model_process_does_not_outlive_its_server(repository: Path, tmp_path: Path) -> None:
    """Not even one that the supervisor has not seen yet: it may hold what the next one needs."""
    with background_server(repository, log=tmp_path / "log") as server:
        new = replaced(server, "gallery")
        new.suspend()
        next(one for one in children(server) if one.name() == "tritonserver").kill()
        assert wait_for(lambda: not new.is_running())
        assert wait_for(server.is_ready)


def test_signals_in_the_middle_of_others_stop_a_server(repository: Path, tmp_path: Path) -> None:
    program = (sys.executable, Path(__file__).with_name("interrupted.py"))
    with background_server(repository, log=tmp_path / "log", program=program) as server:
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=20)


def test_server_restarts_under_a_running_client(repository: Path, tmp_path: Path) -> None:
    """A client in the middle of a stream neither loses nor repeats a result."""
    grpc_port = None
    results: list[np.ndarray] = []
    with background_server(repository, log=tmp_path / "first.log") as first:
        grpc_port = first.url.rsplit(":", 1)[1]
        with TeranClient(first.url, batch_size=2, in_flight=1, timeout=60) as client:
            stream = client.encode_captions(f"a dog {i % 7} runs" for i in range(400))
            results += [next(stream).word_embeddings for _ in range(10)]
            for process in (*children(first), psutil.Process(first.process.pid)):
                process.kill()
            first.process.wait()
            collected = threading.Thread(
                target=lambda: results.extend(one.word_embeddings for one in stream)
            )
            collected.start()
            ports = ["--http-port=0", "--metrics-port=0", "--health-port=0"]
            command = [sys.executable, "-m", "teran_client.cli", "serve", str(repository), *ports]
            second = subprocess.Popen(
                [*command, f"--grpc-port={grpc_port}"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                collected.join(90)
                assert not collected.is_alive()
            finally:
                second.terminate()
                second.wait(60)
    assert len(results) == 400
    for i, embeddings in enumerate(results[:70]):
        np.testing.assert_allclose(embeddings, results[i % 7], atol=1e-5)


def test_absent_server_is_reported_soon() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
    started = time.monotonic()
    with TeranClient(url) as client:
        assert not client.is_ready()
        with pytest.raises(TeranUnavailableError, match=url):
            client.encode_captions("a dog")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_cleanly(repository: Path, tmp_path: Path, number: int) -> None:
    with background_server(repository, log=tmp_path / "log") as server:
        pid = server.process.pid
        processes = children(server)
        assert list(Path("/dev/shm").glob(f"teran-{pid}-*"))
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
    assert not any(process.is_running() for process in processes)
    assert not list(Path("/dev/shm").glob(f"teran-{pid}-*"))


def serve(repository: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    ports = ["--grpc-port=0", "--http-port=0", "--metrics-port=0", "--health-port=0"]
    command = [sys.executable, "-m", "teran_client.cli", "serve", str(repository), *ports, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_port_in_use(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve(repository, f"--grpc-port={port}")
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"error: port {port} on 127.0.0.1 is in use; choose another with --grpc-port, "
        "or 0 for a free one"
    )


def test_one_port_for_two(repository: Path) -> None:
    [port] = free_ports("127.0.0.1", 1)
    result = serve(repository, f"--grpc-port={port}", f"--health-port={port}")
    assert result.returncode == 1
    assert result.stderr.strip() == (
        f"error: --grpc-port and --health-port are both {port}; change one of them"
    )


def broken(repository: Path, folder: Path) -> Path:
    copy = folder / "copy"
    shutil.copytree(repository.resolve(), copy)
    return copy


def test_missing_engine(repository: Path, tmp_path: Path) -> None:
    copy = broken(repository, tmp_path)
    (copy / "visual_encoder" / "1" / "model.bin").unlink()
    result = serve(copy)
    assert result.returncode == 1
    assert "visual_encoder/1/model.bin is missing; publish the repository again" in result.stderr


def test_a_repository_of_another_version(repository: Path, tmp_path: Path) -> None:
    copy = broken(repository, tmp_path)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["format"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    result = serve(copy)
    assert result.returncode == 1
    assert "was published by another version" in result.stderr
    assert "publish it again with `teran export`" in result.stderr


def test_damaged_engine(repository: Path, tmp_path: Path) -> None:
    copy = broken(repository, tmp_path)
    engine = copy / "textual_encoder" / "1" / "model.xml"
    engine.write_bytes(b"x" * engine.stat().st_size)
    result = serve(copy)
    assert result.returncode == 1
    assert "error: the server did not start: textual_encoder:" in result.stderr
    assert "Traceback" not in result.stderr.split("error: the server")[1]


def test_not_a_repository(tmp_path: Path) -> None:
    result = serve(tmp_path)
    assert result.returncode == 1
    assert "was not published by `teran export`" in result.stderr
    assert serve(tmp_path / "absent").stderr.startswith("error: no model repository")


def test_raw_flags_reach_the_server(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with background_server(repository, "--verbose", "--", "--id=my-server", log=log):
        assert "my-server" in log.read_text()


def test_server_ends_with_its_supervisor(repository: Path, tmp_path: Path) -> None:
    with background_server(repository, log=tmp_path / "log") as server:
        processes = children(server)
        server.process.kill()
        server.process.wait()
        assert wait_for(lambda: not any(process.is_running() for process in processes))


def test_stale_shared_memory_is_removed(repository: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = Path(f"/dev/shm/teran-{gone.pid}-test")
    stale.write_bytes(b"left behind")
    with background_server(repository, log=tmp_path / "log"):
        assert not stale.exists()


def test_a_server_that_crashes_is_started_again(repository: Path, tmp_path: Path) -> None:
    with background_server(repository, log=tmp_path / "log") as server:
        with TeranClient(server.url) as client:
            client.encode_captions("a dog")
            for _ in range(2):
                triton = next(p for p in children(server) if p.name().startswith("tritonserver"))
                triton.send_signal(signal.SIGABRT)
                assert wait_for(lambda: not server.is_ready(), 5)
                assert client.encode_captions("a dog").tokens[1] == "a"  # by patience alone
                assert wait_for(server.is_ready)
        assert server.process.poll() is None
    assert "the server ended with status -6: Signal (6) received." in (tmp_path / "log").read_text()
