"""Every option of `teran serve`, in one place."""

import os
from dataclasses import dataclass
from pathlib import Path

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
    threads: int = 0
    """Threads for all engines together; 0 stands for the available cores."""
    startup_timeout: float = 300.0
    """Seconds until every model must be ready."""
    shutdown_timeout: float = 30.0
    """Seconds requests in flight get to finish after a signal."""
    check_interval: float = 5.0
    """Seconds between canary inferences; a model process that vanishes is noticed at once."""
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
        }
        return {name: value for name, value in values.items() if value is not None}

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
