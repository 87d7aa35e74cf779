"""A Prometheus on this host: the committed configuration, pointed at a server and sped up."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from teran.cli.background import BackgroundServer
from teran.errors import ServingError
from teran.supervisor.health import fetch
from teran.supervisor.host import free_ports

_HERE = Path(__file__).parent
_FASTER = {"5m": "10s", "15m": "15s", "30m": "15s", "1h": "20s", "6h": "20s"}
"""Windows of the rules, and what they are for a run of a minute."""


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus that runs."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """What its API answers.

        Raises:
            ServingError: it does not, or refuses the question.
        """
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            return json.loads(fetch(url, timeout=10))["data"]
        except OSError as error:
            raise ServingError(f"Prometheus does not answer: {error}") from error

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series an expression gives just now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def range(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """The series an expression gives between two times, second by second."""
        times = {"start": f"{start:.3f}", "end": f"{end:.3f}", "step": "1"}
        found: list[dict[str, Any]] = self.get("query_range", query=expression, **times)["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self.get("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def answers(self) -> bool:
        """Whether it takes queries yet."""
        try:
            return bool(self.query("up"))
        except ServingError:
            return False


def faster(expression: str) -> str:
    """An expression or a rule with shorter windows."""
    return re.sub(r"\[(\w+)\]", lambda window: f"[{_FASTER[window[1]]}]", expression)


def find_prometheus() -> str:
    """The program.

    Raises:
        ServingError: it is not installed; the message says how to get it.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        raise ServingError(
            "Prometheus is not on this host; on Debian: apt install prometheus, elsewhere see "
            "https://prometheus.io/download and put it on PATH"
        )
    return binary


@contextmanager
def prometheus(folder: Path, triton: str, supervisor: str) -> Iterator[Prometheus]:
    """Run the committed configuration on two targets, with shorter intervals and windows.

    Args:
        folder: where its files go.
        triton: Triton's metrics, host:port.
        supervisor: the supervisor's.

    Raises:
        ServingError: it is not installed, or does not start.
    """
    binary = find_prometheus()
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((_HERE / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for target, address in zip(
        config["scrape_configs"][0]["static_configs"], (triton, supervisor), strict=True
    ):
        target["targets"] = [address]
    rules = faster((_HERE / "rules.yml").read_text(encoding="utf-8"))
    (folder / "rules.yml").write_text(re.sub(r"for: \w+", "for: 1s", rules), encoding="utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    [port] = free_ports("127.0.0.1", 1)
    command = [
        binary, f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        # No preexec_fn: where threads are inside gRPC, a fork that runs Python may never return.
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            running = Prometheus(f"http://127.0.0.1:{port}")
            deadline = time.monotonic() + 60
            while not running.answers():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ServingError(f"Prometheus does not start; see {log}")
                time.sleep(0.2)
            yield running
        finally:
            process.terminate()
            process.wait(30)


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something to become true.

    Raises:
        ServingError: it did not, in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ServingError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.3)


def addresses(server: BackgroundServer) -> tuple[str, str]:
    """What Prometheus scrapes: Triton and the supervisor, host:port."""
    split = urllib.parse.urlsplit
    return split(server.metrics_url).netloc, split(server.health_url).netloc
