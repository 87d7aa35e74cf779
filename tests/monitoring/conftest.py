"""The real Prometheus, scraping a real server: the committed configuration, sped up."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from teran.serving.background import BackgroundServer
from teran.serving.process import free_port
from tests.server.conftest import repository  # noqa: F401

MONITORING = Path(__file__).parents[2] / "monitoring"
_FASTER = {"5m": "10s", "15m": "15s", "30m": "15s", "1h": "20s", "6h": "20s"}


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series an expression gives just now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.get("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.3)


@contextmanager
def prometheus(folder: Path, triton: str, supervisor: str) -> Iterator[Prometheus]:
    """Run the committed configuration on two targets, with shorter intervals and windows."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("Prometheus is not installed (Debian: apt install prometheus)")
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for target, address in zip(
        config["scrape_configs"][0]["static_configs"], (triton, supervisor), strict=True
    ):
        target["targets"] = [address]
    rules = (MONITORING / "rules.yml").read_text()
    rules = re.sub(r"\[(\w+)\]", lambda window: f"[{_FASTER[window[1]]}]", rules)
    rules = re.sub(r"for: \w+", "for: 1s", rules)
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port("127.0.0.1")
    command = [
        binary, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        # No preexec_fn: where threads are inside gRPC, a fork that runs Python may never return.
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            running = Prometheus(f"http://127.0.0.1:{port}")
            until(lambda: _answers(running), "Prometheus answers")
            yield running
        finally:
            process.terminate()
            process.wait(30)


def _answers(running: Prometheus) -> bool:
    try:
        return bool(running.query("up"))
    except OSError:
        return False


def addresses(server: BackgroundServer) -> tuple[str, str]:
    """What Prometheus scrapes: Triton and the supervisor, host:port."""
    split = urllib.parse.urlsplit
    return split(server.metrics_url).netloc, split(server.health_url).netloc
