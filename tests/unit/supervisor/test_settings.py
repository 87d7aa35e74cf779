"""Settings and process helpers that need no server."""

import socket
from pathlib import Path

import pytest

from teran.errors import ServingError
from teran.runtime.environment import available_cores
from teran.supervisor.canary import read_canaries
from teran.supervisor.host import free_ports, require_free, require_shared_memory
from teran.supervisor.settings import ServeSettings


def test_thread_budget_is_divided() -> None:
    shares = ServeSettings(Path(), threads=8).thread_shares()
    assert shares == {"visual_encoder": 8, "textual_encoder": 8, "alignment": 4, "gallery": 8}
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


def test_damaged_configs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="not a model repository"):
        read_canaries(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(ServingError, match=r"tokenizer/config\.pbtxt is damaged"):
        read_canaries(tmp_path)
