"""What `teran doctor` finds on a host that is made to lack something."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from teran.cli.gallery_checks import CHECKS
from teran.gallery.embedded.lock import lock_directory
from teran.supervisor.doctor import Finding, Verdict, examine
from teran.supervisor.host import free_ports
from teran.supervisor.settings import ServeSettings


@pytest.fixture
def settings(repository: Path, tmp_path: Path) -> ServeSettings:
    grpc, http, metrics, health = free_ports("127.0.0.1", 4)
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    return ServeSettings(
        copy, grpc_port=grpc, http_port=http, metrics_port=metrics, health_port=health
    )


def bad(settings: ServeSettings) -> dict[str, Finding]:
    """By subject, what is not good."""
    return {
        one.subject: one for one in examine(settings, *CHECKS) if one.verdict is not Verdict.GOOD
    }


def change_manifest(settings: ServeSettings, **request: object) -> None:
    path = settings.repository / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["request"] |= request
    path.write_text(json.dumps(manifest))


@pytest.fixture
def leftover() -> Iterator[Path]:
    """A folder of a server that is gone."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    path = Path(tempfile.mkdtemp(prefix=f"teran-serve-{gone.stdout.strip()}-"))
    yield path
    path.rmdir()


def test_a_good_host(settings: ServeSettings) -> None:
    found = bad(settings)
    found.pop("leftovers", None)  # another test run's
    assert "CVE-2025-23319" in found.pop("vulnerabilities").message  # of the only wheel there is
    assert not found
    assert not settings.gallery_directory().exists()  # it only looks


def test_no_repository(settings: ServeSettings) -> None:
    found = bad(replace(settings, repository=settings.repository / "nowhere"))
    assert found["repository"].verdict is Verdict.ERROR
    assert "teran export" in found["repository"].message


def test_a_truncated_engine(settings: ServeSettings) -> None:
    path = next(settings.repository.rglob("*.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in bad(settings)["repository"].message


def test_engines_of_another_version(settings: ServeSettings) -> None:
    change_manifest(settings, versions={"openvino": "2020.1-1234"})
    finding = bad(settings)["engines"]
    assert finding.verdict is Verdict.WARNING
    assert "openvino 2020.1" in finding.message


def test_engines_for_a_gpu(settings: ServeSettings) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this host may have a GPU")
    change_manifest(settings, engine="tensorrt")
    assert bad(settings)["gpu"].verdict is Verdict.ERROR
    assert bad(replace(settings, gallery_device="cuda"))["gpu"].verdict is Verdict.ERROR


def test_engines_that_were_not_run_where_they_were_built(settings: ServeSettings) -> None:
    path = settings.repository / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verified": False}))
    assert "teran verify" in bad(settings)["verification"].advice
    found = {"host": {"gpu": "a GPU"}, "date": "today", "refused": "cosine 0.5"}
    verified = settings.repository / "verified.json"
    verified.write_text(json.dumps(found))
    assert bad(settings)["verification"].verdict is Verdict.ERROR
    assert "cosine 0.5" in bad(settings)["verification"].message
    verified.write_text(json.dumps(found | {"refused": None}))
    assert "verification" not in bad(settings)


def test_a_port_in_use(settings: ServeSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.http_port))
        taken.listen()
        assert "ports" not in bad(settings)  # HTTP is off
        finding = bad(replace(settings, http=True))["ports"]
    assert finding.verdict is Verdict.ERROR
    assert str(settings.http_port) in finding.message
    assert "--http-port" in finding.message


def test_a_port_of_somebody_who_speaks_no_http(settings: ServeSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.health_port))
        taken.listen()
        answering = threading.Thread(target=lambda: taken.accept()[0].send(b"220 mail\r\n"))
        answering.start()
        finding = bad(settings)["ports"]
        answering.join()
    assert "--health-port" in finding.message


def test_a_foreign_manifest(settings: ServeSettings) -> None:
    (settings.repository / "manifest.json").write_text('{"files": {}}')
    assert bad(settings)["repository"].verdict is Verdict.ERROR


def test_a_gallery_in_use(settings: ServeSettings) -> None:
    directory = settings.gallery_directory()
    directory.mkdir()
    with lock_directory(directory):
        finding = bad(settings)["gallery"]
    assert f"process {os.getpid()}" in finding.message
    assert "gallery" not in bad(settings)


def test_a_gallery_that_cannot_be_written(settings: ServeSettings, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert bad(settings)["gallery"].verdict is Verdict.ERROR


def test_security(settings: ServeSettings) -> None:
    exposed = replace(settings, host="0.0.0.0")
    assert bad(exposed)["security"].verdict is Verdict.ERROR
    assert bad(replace(exposed, insecure=True))["security"].verdict is Verdict.WARNING
    half = replace(settings, tls_key=Path("key.pem"))
    assert bad(half)["security"].verdict is Verdict.ERROR


def test_leftovers(settings: ServeSettings, leftover: Path) -> None:
    assert bad(settings)["leftovers"].verdict is Verdict.WARNING
    assert leftover.exists()
