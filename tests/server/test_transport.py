"""TLS and metadata headers, against a real server that demands them."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from teran_client import TeranClient, TeranError, TeranInputError
from teran_client.channel import Tls

from teran.serving import installation
from teran.serving.process import TritonProcess, free_port
from teran.serving.settings import ServeSettings

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
    grpc, http, metrics, health = (free_port(host) for _ in range(4))
    flags = (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={certificate / 'cert.pem'}",
        f"--grpc-server-key={certificate / 'key.pem'}",
        "--grpc-restricted-protocol=inference:teran-key=secret",
    )
    settings = ServeSettings(repository, host, grpc, http, metrics, health, arguments=flags)
    process = TritonProcess(settings, installation.find())
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
    with TeranClient(secured, tls=tls) as client, pytest.raises(TeranError, match="teran-key"):
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
