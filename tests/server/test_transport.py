"""TLS and metadata headers, against a real server that demands them."""

import asyncio
import dataclasses
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from teran_client import AsyncTeranClient, Entry, TeranClient, TeranError, TeranInputError
from teran_client.channel import Tls
from tritonclient.grpc import service_pb2

from teran.cli.background import BackgroundServer, background_server
from teran.errors import ServingError
from teran.supervisor import installation
from teran.supervisor.host import free_ports
from teran.supervisor.logs import ServerLog
from teran.supervisor.process import TritonProcess
from teran.supervisor.settings import ServeSettings
from tests.data import images
from tests.server.test_supervision import model_process, wait_for

HEADER = {"triton-grpc-protocol-teran-key": "secret"}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def secured(repository: Path, certificate: Path) -> Iterator[str]:
    """A server whose inference calls need TLS and a header; yields its address."""
    host = "127.0.0.1"
    grpc, http, metrics, health = free_ports(host, 4)
    flags = (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate / 'cert.pem'}",
        f"--grpc-server-key={certificate / 'key.pem'}",
        "--grpc-restricted-protocol=inference:teran-key=secret",
    )
    settings = ServeSettings(
        repository,
        host=host,
        grpc_port=grpc,
        http_port=http,
        metrics_port=metrics,
        health_port=health,
        arguments=flags,
    )
    process = TritonProcess(settings, installation.find(), ServerLog())
    url = f"localhost:{grpc}"
    try:
        with TeranClient(url, tls=Tls(certificate / "cert.pem")) as probe:
            deadline = time.monotonic() + 60
            while not probe.is_ready():
                assert time.monotonic() < deadline, process.failures()
                time.sleep(0.2)
        yield url
    finally:
        process.stop()


def test_certificate_and_header_are_accepted(secured: str, certificate: Path) -> None:
    with TeranClient(secured, tls=Tls(certificate / "cert.pem"), headers=HEADER) as client:
        assert client.encode_captions("a dog").tokens[1] == "a"


def test_missing_header_is_refused(secured: str, certificate: Path) -> None:
    tls = Tls(certificate / "cert.pem")
    with TeranClient(secured, tls=tls) as client, pytest.raises(TeranInputError, match="teran-key"):
        client.encode_captions("a dog")


def test_plain_connection_and_unknown_authority_are_refused(secured: str) -> None:
    for tls in (None, Tls()):
        with TeranClient(secured, tls=tls, headers=HEADER, timeout=5, retries=1) as client:
            assert not client.is_ready()
            with pytest.raises(TeranError):
                client.encode_captions("a dog")


def test_missing_certificate_is_named(tmp_path: Path) -> None:
    client = TeranClient("localhost:1", tls=Tls(tmp_path / "absent.pem"))
    with client, pytest.raises(TeranInputError, match=r"absent\.pem"):
        client.encode_captions("a dog")


@pytest.fixture(scope="module")
def supervised(
    repository: Path, certificate: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    """`teran serve` with TLS and keys."""
    folder = tmp_path_factory.mktemp("supervised")
    for name in ("admin", "write"):
        (folder / f"{name}.key").write_text(f"{name}-secret\n")
    flags = {
        "--tls-certificate": certificate / "cert.pem",
        "--tls-key": certificate / "key.pem",
        "--admin-key-file": folder / "admin.key",
        "--write-key-file": folder / "write.key",
        "--check-interval": 1,
        "--gallery": folder / "gallery",
    }
    arguments = [str(part) for pair in flags.items() for part in pair]
    with background_server(repository, *arguments, log=folder / "log") as server:
        yield server


def secure(server: BackgroundServer, certificate: Path, **headers: str) -> TeranClient:
    url = server.url.replace("127.0.0.1", "localhost")
    return TeranClient(url, tls=Tls(certificate / "cert.pem"), headers=headers, timeout=30)


def test_writes_need_their_key(supervised: BackgroundServer, certificate: Path) -> None:
    entry = Entry(images(1)[0], "one")
    for headers in ({}, {"teran-write-key": "guessed"}):
        with secure(supervised, certificate, **headers) as client:
            for write in (
                lambda: client.index(entry),
                lambda: client.delete("one"),
                lambda: client.drop_gallery("default"),
                lambda: client.set_alias("a", "default"),
            ):
                with pytest.raises(TeranInputError, match="header teran-write-key"):
                    write()
    with secure(supervised, certificate, **{"teran-write-key": "write-secret"}) as client:
        assert client.index(entry) == "one"
    with secure(supervised, certificate) as client:  # reading needs none
        assert client.search("a dog", k=1).hits[0].id == "one"


def test_models_are_loaded_with_the_admin_key_only(
    supervised: BackgroundServer, certificate: Path
) -> None:
    async def unload(**headers: str) -> None:
        url = supervised.url.replace("127.0.0.1", "localhost")
        async with AsyncTeranClient(
            url, tls=Tls(certificate / "cert.pem"), headers=headers, timeout=20
        ) as client:
            request = service_pb2.RepositoryModelUnloadRequest(model_name="match")
            await client._channel.call("RepositoryModelUnload", request)

    with pytest.raises(TeranError):
        asyncio.run(unload())
    with secure(supervised, certificate) as client:
        assert client.match(images(1)[0], "a dog").score
    asyncio.run(unload(**{"triton-grpc-protocol-teran-admin-key": "admin-secret"}))


def test_supervisor_brings_models_back_through_tls(
    supervised: BackgroundServer, certificate: Path
) -> None:
    model_process(supervised, "tokenizer").kill()
    assert wait_for(lambda: not supervised.is_ready(), 10)
    assert wait_for(supervised.is_ready, 30)
    with secure(supervised, certificate) as client:
        assert client.encode_captions("a dog").tokens[1] == "a"


def test_exposure_is_known(certificate: Path) -> None:
    (certificate / "write.key").write_text("w")
    plain = ServeSettings(Path(), host="0.0.0.0", write_key_file=certificate / "write.key")
    files = certificate / "cert.pem", certificate / "key.pem"
    secured = dataclasses.replace(plain, tls_certificate=files[0], tls_key=files[1])
    assert not secured.is_exposed
    assert not ServeSettings(Path()).is_exposed
    assert plain.is_exposed
    assert dataclasses.replace(secured, write_key_file=None).is_exposed


def test_half_of_tls_is_refused(repository: Path, certificate: Path) -> None:
    settings = ServeSettings(repository, tls_certificate=certificate / "cert.pem")
    with pytest.raises(ServingError, match="--tls-certificate and --tls-key go together"):
        settings.security_arguments("key")
    absent = ServeSettings(repository, tls_certificate=Path("/none"), tls_key=Path("/none"))
    with pytest.raises(ServingError, match="/none is no file"):
        absent.security_arguments("key")
