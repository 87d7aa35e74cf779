"""Settings and process helpers that need no server."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from teran.errors import ServingError
from teran.runtime.environment import available_cores
from teran.supervisor.canary import read_canaries
from teran.supervisor.host import free_ports, require_free, require_shared_memory
from teran.supervisor.settings import ServeSettings


def test_thread_budget_is_divided() -> None:
    shares = ServeSettings(Path(), threads=8).thread_shares()
    whole = ("visual_encoder", "textual_encoder", "gallery", "proposal_network", "region_network")
    assert shares == {**dict.fromkeys(whole, 8), "alignment": 4}
    assert min(ServeSettings(Path(), threads=1).thread_shares().values()) == 1
    assert ServeSettings(Path()).thread_shares()["visual_encoder"] == available_cores()


def test_gallery_is_beside_the_repository(tmp_path: Path) -> None:
    settings = ServeSettings(tmp_path / "repository")
    assert settings.gallery_directory() == tmp_path / "repository.gallery"
    chosen = ServeSettings(tmp_path / "repository", gallery=tmp_path / "mine")
    assert chosen.gallery_directory() == tmp_path / "mine"


def test_ports() -> None:
    [port] = free_ports("127.0.0.1", 1)
    require_free("127.0.0.1", port, "--grpc-port")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ServingError, match=f"port {port} .* in use; .* --grpc-port"):
            require_free("127.0.0.1", port, "--grpc-port")


def test_free_ports_are_different() -> None:
    ports = free_ports("127.0.0.1", 2000)
    assert len(set(ports)) == 2000
    assert not {*ports} & {*free_ports("127.0.0.1", 2000, besides=ports)}
    with pytest.raises(ServingError, match=r"1 free ports on 192\.0\.2\.1 .* assign requested"):
        free_ports("192.0.2.1", 1)


def test_small_shared_memory_is_refused() -> None:
    require_shared_memory(1)
    with pytest.raises(ServingError, match=r"/dev/shm has \d+ MiB free, .* --shm-size 1g"):
        require_shared_memory(1 << 60)


@pytest.mark.parametrize(
    "flag",
    [
        "--allow-http=true",
        "--grpc-address=0.0.0.0",
        "--http-addr",
        "--reuse-grpc-port=1",
        "--allow-v",
    ],
)
def test_who_reaches_the_server_is_not_said_by_the_way(flag: str) -> None:
    """Triton takes abbreviations, and the last of two flags."""
    with pytest.raises(ServingError, match=f"{flag.split('=')[0]} decides .* see --host"):
        ServeSettings(Path(), arguments=("--log-verbose=1", flag)).require_safety()


def test_other_flags_are_passed_on() -> None:
    arguments = ("--log-verbose=1", "--http-thread-count", "2", "--grpc-infer-thread-count=4", "-x")
    ServeSettings(Path(), arguments=arguments).require_safety()


def test_files_may_be_opened_up_to_the_hard_limit() -> None:
    code = """
import resource
from teran.supervisor.host import allow_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
allow_open_files()
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65536), hard)
allow_open_files()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="not a model repository"):
        read_canaries(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(ServingError, match=r"tokenizer/config\.pbtxt is damaged"):
        read_canaries(tmp_path)
