"""Every option of `teran serve`, in one place."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from teran.errors import ServingError
from teran.serving.logs import LogFormat, LogLevel

GALLERY_VARIABLE = "TERAN_GALLERY"
"""Environment variable that tells the gallery model its directory."""
GALLERY_FLUSH_VARIABLE = "TERAN_GALLERY_FLUSH"
"""1 where writes must survive a loss of power before they are acknowledged."""
GALLERY_URL_VARIABLE = "TERAN_GALLERY_URL"
"""Address of a Qdrant cluster that holds the galleries, instead of the directory."""
GALLERY_API_KEY_VARIABLE = "TERAN_GALLERY_API_KEY"
GALLERY_DEVICE_VARIABLE = "TERAN_GALLERY_DEVICE"
"""Where galleries are scanned: cpu, or a GPU by its torch name."""
GALLERY_PRECISION_VARIABLE = "TERAN_GALLERY_PRECISION"
"""How embeddings are kept in a GPU's memory."""
WRITE_KEY_VARIABLE = "TERAN_WRITE_KEY"
WRITE_KEY_HEADER = "teran-write-key"
"""Metadata that a client sends with writes, where the server asks for a key."""
ADMIN_KEY_HEADER = "teran-admin-key"
"""Sent as triton-grpc-protocol-teran-admin-key, as Triton wants it."""
_ADMIN_PROTOCOLS = "model-repository,shared-memory,trace,logging"
THREADS_VARIABLE = "TERAN_THREADS_{model}"
"""Environment variable that tells an engine its part of the server's thread budget. Set before the
server starts, it decides."""


def available_cores() -> int:
    """Cores this process may use: its affinity, cut down to a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores


@dataclass(frozen=True)
class ServeSettings:
    """How to run the server. Ports of 0 stand for free ones."""

    PORTS: ClassVar = ("grpc_port", "http_port", "metrics_port", "health_port")

    repository: Path
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    health_port: int = 8003
    gallery: Path | None = None
    """Directory of the galleries; None stands for one beside the repository."""
    gallery_flush: bool = False
    """Flush every write to the disk before it is acknowledged."""
    gallery_url: str | None = None
    """A Qdrant cluster that holds the galleries, instead of the directory."""
    gallery_api_key: str | None = None
    gallery_device: str = "cpu"
    """Where galleries are scanned: "cpu", "cuda", "cuda:1"."""
    gallery_precision: str = "fp16"
    """How embeddings are kept in a GPU's memory: fp16, bf16 or fp8."""
    tls_certificate: Path | None = None
    """Certificate chain of the gRPC endpoint; HTTP, which knows no TLS, then stays on loopback."""
    tls_key: Path | None = None
    tls_name: str = "localhost"
    """A name in the certificate, by which the supervisor's own calls know the server."""
    admin_key: str | None = None
    """What must come with calls that load models or change the server."""
    write_key: str | None = None
    """What must come with calls that change galleries."""
    threads: int = 0
    """Threads for all engines together; 0 stands for the available cores."""
    startup_timeout: float = 300.0
    """Seconds until every model must be ready."""
    shutdown_timeout: float = 30.0
    """Seconds requests in flight get to finish after a signal."""
    check_interval: float = 5.0
    """Seconds between canary inferences; a model process that vanishes is noticed at once."""
    metrics: bool = True
    """Whether models record what `/metrics` on the health port tells."""
    log_format: LogFormat = LogFormat.TEXT
    log_level: LogLevel = LogLevel.WARNING
    """From which level on models write: failures, refused requests at info, all at debug."""
    trace_url: str | None = None
    """Where traces go: a collector's OTLP endpoint over HTTP, http://host:4318/v1/traces."""
    trace_rate: int = 1000
    """One of so many requests is traced; those that belong to a client's trace are always."""
    verbose: bool = False
    """Show Triton's informational log, not only its warnings and errors."""
    arguments: tuple[str, ...] = ()
    """Passed to `tritonserver` as they are."""

    def gallery_directory(self) -> Path:
        """Where the galleries are: beside the repository, unless said otherwise."""
        repository = self.repository.absolute()
        return (self.gallery or repository.with_name(f"{repository.name}.gallery")).absolute()

    def gallery_environment(self) -> dict[str, str]:
        """What the gallery model reads."""
        values = {
            GALLERY_VARIABLE: str(self.gallery_directory()),
            GALLERY_FLUSH_VARIABLE: str(int(self.gallery_flush)),
            GALLERY_URL_VARIABLE: self.gallery_url,
            GALLERY_API_KEY_VARIABLE: self.gallery_api_key,
            GALLERY_DEVICE_VARIABLE: self.gallery_device,
            GALLERY_PRECISION_VARIABLE: self.gallery_precision,
            WRITE_KEY_VARIABLE: self.write_key,
        }
        return {name: value for name, value in values.items() if value is not None}

    def security_arguments(self) -> list[str]:
        """Triton's flags for TLS and keys.

        Raises:
            ServingError: only half of what TLS needs is there.
        """
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ServingError("--tls-certificate and --tls-key go together")
        flags = []
        if self.tls_certificate and self.tls_key:
            for path in (self.tls_certificate, self.tls_key):
                if not path.is_file():
                    raise ServingError(f"{path} is no file; TLS needs a certificate and its key")
            flags += [
                "--grpc-use-ssl=true",
                f"--grpc-server-cert={self.tls_certificate}",
                f"--grpc-server-key={self.tls_key}",
            ]
        if self.admin_key:
            restricted = f"{_ADMIN_PROTOCOLS}:{ADMIN_KEY_HEADER}={self.admin_key}"
            flags += [f"--grpc-restricted-protocol={restricted}"]
            flags += [f"--http-restricted-api={restricted}"]
        if self.write_key:
            flags += [f"--grpc-header-forward-pattern={WRITE_KEY_HEADER}"]
            flags += [f"--http-header-forward-pattern={WRITE_KEY_HEADER}"]
        return flags

    def trace_arguments(self) -> list[str]:
        """Triton's flags for OpenTelemetry.

        Raises:
            ServingError: the address has no scheme or host.
        """
        if self.trace_url is None:
            return []
        parts = urlsplit(self.trace_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServingError(
                f"--trace-url is {self.trace_url!r}, expected something like "
                "http://collector:4318/v1/traces"
            )
        settings = {
            "mode": "opentelemetry",
            "level": "TIMESTAMPS",
            "rate": str(self.trace_rate),
            "opentelemetry,url": self.trace_url,
            "opentelemetry,resource": "service.name=teran",
        }
        return [f"--trace-config={name}={value}" for name, value in settings.items()]

    @property
    def is_exposed(self) -> bool:
        """Whether other hosts may reach the server, and could change what it does."""
        safe = self.tls_certificate and self.admin_key and self.write_key
        return self.host not in ("127.0.0.1", "localhost", "::1") and not safe

    @property
    def http_host(self) -> str:
        """Where HTTP listens: it has no TLS, so with TLS it stays on this host."""
        return "127.0.0.1" if self.tls_certificate else self.host

    def thread_shares(self) -> dict[str, int]:
        """Divide the thread budget among the engines.

        The encoders get all of it each: their threads sleep when idle, one alone must be able to
        use the whole machine, and measured under mixed load a strict division serves no better.
        The alignment gets half, a gallery's scan all of it.
        """
        budget = self.threads or available_cores()
        return {
            "visual_encoder": budget,
            "textual_encoder": budget,
            "alignment": max(1, budget // 2),
            "gallery": budget,
        }
