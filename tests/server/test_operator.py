"""`teran status` and `teran doctor` beside a real server."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from teran_client import Entry, TeranClient

from teran.cli.background import BackgroundServer
from teran.supervisor.host import free_ports
from tests.data import images

COMMAND = [sys.executable, "-m", "teran_client.cli"]


def flags(server: BackgroundServer) -> list[str]:
    ports = {"metrics": server.metrics_url, "health": server.health_url}
    return [
        part for name, url in ports.items() for part in (f"--{name}-port", str(urlsplit(url).port))
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_status_tells_what_happens(server: BackgroundServer, client: TeranClient) -> None:
    client.index([Entry(image, image.name) for image in images(5)])
    command = [*COMMAND, "status", "--json", "--interval", "1", *flags(server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(20):
            client.search("a dog runs")
        told = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert all(status["ready"] for status in told)
    busiest = max(told, key=lambda one: float(one["searches_per_second"]))
    assert busiest["searches_per_second"] > 0
    assert told[-1]["galleries"][0]["items"] == 5
    by_name = {
        one["name"]: one for one in max(told, key=lambda one: one["searches_per_second"])["models"]
    }
    assert by_name["search"]["requests_per_second"] > 0
    assert 0 < by_name["gallery"]["p50_ms"] <= by_name["gallery"]["p99_ms"]


def test_status_shows_a_table(server: BackgroundServer) -> None:
    result = run("status", "--once", "--interval", "0.5", *flags(server))
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ready  openvino fp32")
    assert "textual_encoder" in result.stdout


def test_status_of_nobody() -> None:
    port = str(*free_ports("127.0.0.1", 1))
    result = run("status", "--once", "--metrics-port", port)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}/metrics does not answer" in result.stderr


def test_status_waits_for_a_server() -> None:
    port = str(*free_ports("127.0.0.1", 1))
    command = [*COMMAND, "status", "--json", "--interval", "0.2", "--metrics-port", port]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [json.loads(process.stdout.readline()) for _ in range(3)]
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
    assert all("does not answer" in one["error"] for one in told)


def test_doctor_sees_the_server(server: BackgroundServer, repository: Path) -> None:
    result = run("doctor", str(repository), "--json", *flags(server))
    assert result.returncode == 1, result.stdout
    found = {one["subject"]: one for one in json.loads(result.stdout)}
    assert found["ports"]["verdict"] == "error"
    assert "a server runs here already" in found["ports"]["message"]


def test_doctor_says_what_to_do(tmp_path: Path) -> None:
    free = [
        part for name in ("grpc", "http", "metrics", "health") for part in (f"--{name}-port", "0")
    ]
    result = run("doctor", str(tmp_path / "nowhere"), *free)
    assert result.returncode == 1
    assert "teran export" in " ".join(result.stdout.split())
    assert "errors: 1" in result.stdout
