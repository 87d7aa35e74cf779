"""Every option of `teran serve`, in one place."""

import re
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from cyclopts import Parameter
from cyclopts.validators import Number

from teran.commandline import Positive, Unparsed, options
from teran.contract import ADMIN_KEY_HEADER, WRITE_KEY_HEADER
from teran.errors import ServingError
from teran.runtime.environment import LogLevel, available_cores
from teran.runtime.settings import GallerySettings
from teran.supervisor.logs import LogFormat

_ADMIN_PROTOCOLS = "model-repository,shared-memory,trace,logging"
_OWN_FLAGS = (
    *("allow-grpc", "grpc-address", "grpc-port", "grpc-use-ssl", "grpc-restricted-protocol"),
    *("allow-http", "http-address", "http-port", "http-restricted-api", "reuse-http-port"),
    *("grpc-header-forward-pattern", "http-header-forward-pattern", "reuse-grpc-port"),
    *("allow-sagemaker", "allow-vertex-ai", "metrics-address", "metrics-port"),
    "model-control-mode",
)
"""Triton's, by which it is reached: they follow from our options, or nothing would guard them."""
_FLAG = re.compile("--([^=]+)")
_PROTOCOL_PREFIX = "triton-grpc-protocol-"
"""What Triton puts before the name of a restricted protocol's header."""


Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
NotNegative = Annotated[int, Parameter(validator=Number(gte=0))]


@options
class Listening:
    """Where a server is watched from."""

    _: KW_ONLY
    host: str = "127.0.0.1"
    """Address the server listens on."""
    metrics_port: Port = 8002
    """Triton's metrics. 0: a free one."""
    health_port: Port = 8003
    """Truthful readiness and our metrics. 0: a free one."""


@options
class ServeSettings(Listening, GallerySettings):
    """How to run the server. Ports of 0 stand for free ones."""

    _PORTS: ClassVar[tuple[str, ...]] = ("grpc_port", "metrics_port", "health_port")

    repository: Annotated[Path, Unparsed] = Path("repository")
    _: KW_ONLY
    grpc_port: Port = 8001
    """0: a free one."""
    http: bool = False
    """Serve Triton's HTTP as well, which knows no TLS."""
    http_port: Port = 8000
    """0: a free one."""
    tls_certificate: Path | None = None
    """PEM file; switches TLS on for gRPC. HTTP, which knows no TLS, then stays on loopback."""
    tls_key: Path | None = None
    """The certificate's private key."""
    tls_name: str = "localhost"
    """A host name in the certificate, by which the supervisor's own calls know the server."""
    admin_key_file: Path | None = None
    """File with the key for loading models, shared memory and changes of the server; else it is in
    TERAN_ADMIN_KEY; else one is made, which clients of the same user on this host find."""
    insecure: bool = False
    """Serve beyond this host without TLS or a write key, as behind something that has them."""
    threads: NotNegative = 0
    """For all engines together; 0: all cores."""
    startup_timeout: float = 300.0
    """Seconds until every model must be ready."""
    drain: float = 0.0
    """Seconds between a signal and the stop, not ready but serving: until nobody is sent here."""
    shutdown_timeout: float = 30.0
    """Seconds requests in flight get to finish after a signal."""
    check_interval: float = 5.0
    """Seconds between canary inferences; a model process that vanishes is noticed at once."""
    metrics: bool = True
    """Record what the health port tells at /metrics."""
    log_format: LogFormat = LogFormat.TEXT
    """Text, or one JSON object a line."""
    log_level: LogLevel = LogLevel.WARNING
    """Of the models: failures, at info refused requests too, at debug all of them."""
    trace_url: str | None = None
    """Where OpenTelemetry traces go, as http://collector:4318/v1/traces."""
    trace_rate: Positive = 1000
    """Trace one of so many requests, besides those that clients trace."""
    verbose: bool = False
    """Show Triton's whole log."""
    arguments: Annotated[tuple[str, ...], Unparsed] = ()
    """Passed to `tritonserver` as they are."""

    def gallery_directory(self) -> Path:
        """Where the galleries are: beside the repository, unless said otherwise."""
        repository = self.repository.absolute()
        return (self.gallery or repository.with_name(f"{repository.name}.gallery")).absolute()

    @property
    def ports(self) -> tuple[str, ...]:
        """The options that name a port which is used."""
        return (*self._PORTS, "http_port") if self.http else self._PORTS

    def security_arguments(self, admin_key: str) -> list[str]:
        """Triton's flags for TLS and keys.

        Args:
            admin_key: what administrative calls must bring.

        Raises:
            ServingError: only half of what TLS needs is there, or a key is none.
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
                f"--grpc-server-cert={self.tls_certificate.absolute()}",
                f"--grpc-server-key={self.tls_key.absolute()}",
            ]
        header = ADMIN_KEY_HEADER.removeprefix(_PROTOCOL_PREFIX)
        restricted = f"{_ADMIN_PROTOCOLS}:{header}={admin_key}"
        flags += [f"--grpc-restricted-protocol={restricted}"]
        forwarded = [WRITE_KEY_HEADER] if self.write_key else []
        flags += [f"--grpc-header-forward-pattern={name}" for name in forwarded]
        if self.http:
            flags += [f"--http-restricted-api={restricted}"]
            flags += [f"--http-header-forward-pattern={name}" for name in forwarded]
        return flags

    def require_safety(self) -> None:
        """Refuse to be reached from outside by everybody, unless that is wanted.

        Raises:
            ServingError: it would be, or Triton's own flags say how it is reached.
        """
        for argument in self.arguments:
            flag = _FLAG.match(argument)
            # Triton takes the beginning of a name for it, where no other begins like that.
            if flag and any(own.startswith(flag[1]) for own in _OWN_FLAGS):
                raise ServingError(
                    f"{flag[0]} decides who reaches the server, and is not Triton's to take here; "
                    "see --host, --grpc-port, --http and --tls-certificate"
                )
        if self.is_exposed and not self.insecure:
            raise ServingError(
                f"{self.host} can be reached from outside, where TLS and a write key are needed "
                "(--tls-certificate, --tls-key, --write-key-file); where something in front has "
                "them, or nobody else can come, say --insecure"
            )

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
        safe = self.tls_certificate and self.write_key
        return self.host not in ("127.0.0.1", "localhost", "::1") and not safe

    @property
    def http_host(self) -> str:
        """Where HTTP listens: it has no TLS, so with TLS it stays on this host."""
        return "127.0.0.1" if self.tls_certificate else self.host

    def thread_shares(self) -> dict[str, int]:
        """Divide the thread budget among the engines.

        Encoders and a detector's networks get all of it each: their threads sleep when idle, one
        alone must be able to use the whole machine, and measured under mixed load a strict division
        serves no better.
        The alignment gets half, a gallery's scan all of it.
        """
        budget = self.threads or available_cores()
        names = (
            "visual_encoder",
            "textual_encoder",
            "gallery",
            "proposal_network",
            "region_network",
        )
        whole = dict.fromkeys(names, budget)
        return whole | {"alignment": max(1, budget // 2)}
