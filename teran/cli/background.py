"""Runs `teran serve` as a child process for a while: for demos, benchmarks and tests."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from teran.errors import ServingError
from teran.supervisor.health import fetch
from teran.supervisor.host import free_ports
from teran.supervisor.process import dying_with_parent

_LAST_WORDS = 20
"""Lines of a server's output that tell why it ended."""


@dataclass(frozen=True)
class BackgroundServer:
    """A server that runs, and where it listens."""

    url: str
    """gRPC, host:port."""
    metrics_url: str
    health_url: str
    process: subprocess.Popen[bytes]

    def is_ready(self) -> bool:
        """What the supervisor says of itself."""
        try:
            fetch(self.health_url, timeout=2)
        except OSError:
            return False
        return True


@contextmanager
def background_server(
    repository: Path,
    *arguments: str,
    timeout: float = 300.0,
    log: Path | None = None,
    fixed_ports: Mapping[str, int] | None = None,
    program: Sequence[str | Path] = (sys.executable, "-m", "teran.cli"),
) -> Iterator[BackgroundServer]:
    """Serve `repository` on free ports of loopback until the block ends.

    Args:
        repository: what `teran export` published.
        arguments: further ones for `teran serve`.
        timeout: seconds until it must be ready.
        log: where its output goes; by default to this process's own.
        fixed_ports: ports that must be these, by name: grpc, http, metrics, health.
        program: what has the command `serve`.

    Raises:
        ServingError: it did not become ready, or ended by itself.
    """
    host = "127.0.0.1"
    names = ("grpc", "http", "metrics", "health")
    ports = dict(fixed_ports or {})
    missing = [name for name in names if name not in ports]
    ports |= zip(missing, free_ports(host, len(missing), besides=ports.values()), strict=True)
    flags = [part for name, port in ports.items() for part in (f"--{name}-port", str(port))]
    command = [*program, "serve", repository, *flags, *arguments]
    with Path(log or os.devnull).open("ab") as output:
        process = subprocess.Popen(
            dying_with_parent(command),
            stdout=output if log else None,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )
        server = BackgroundServer(
            f"{host}:{ports['grpc']}",
            f"http://{host}:{ports['metrics']}/metrics",
            f"http://{host}:{ports['health']}/health/ready",
            process,
        )
        try:
            deadline = time.monotonic() + timeout
            while not server.is_ready():
                _require_alive(process, log)
                if time.monotonic() > deadline:
                    raise ServingError(f"the server was not ready after {timeout:.0f} s")
                time.sleep(0.1)
            yield server
            if process.returncode is None:  # the caller has not seen it end
                _require_alive(process, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _require_alive(process: subprocess.Popen[bytes], log: Path | None) -> None:
    if process.poll() is not None:
        said = log.read_text(errors="replace").strip().split("\n")[-_LAST_WORDS:] if log else []
        raise ServingError(
            "\n".join([f"the server ended with status {process.returncode}:", *said]).strip("\n:")
        )
