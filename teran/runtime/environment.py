"""What a model process is told by environment variables, and how many cores it has."""

import os
from enum import StrEnum
from pathlib import Path

THREADS_VARIABLE = "TERAN_THREADS_{model}"
"""An engine's part of the server's thread budget. Set before the server starts, it decides."""
LOG_LEVEL_VARIABLE = "TERAN_LOG_LEVEL"
"""From which level on to write; a `LogLevel`."""
METRICS_DIRECTORY_VARIABLE = "TERAN_METRICS_DIRECTORY"
"""Where to record; nothing is recorded without it."""
GALLERY_VARIABLE = "TERAN_GALLERY"
"""The galleries' directory."""
GALLERY_FLUSH_VARIABLE = "TERAN_GALLERY_FLUSH"
"""1 where writes must survive a loss of power before they are acknowledged."""
GALLERY_URL_VARIABLE = "TERAN_GALLERY_URL"
"""Address of a Qdrant cluster that holds the galleries, instead of the directory."""
GALLERY_API_KEY_VARIABLE = "TERAN_GALLERY_API_KEY"
"""The cluster's key."""
GALLERY_DEVICE_VARIABLE = "TERAN_GALLERY_DEVICE"
"""Where galleries are scanned: cpu, or a GPU by its torch name."""
GALLERY_PRECISION_VARIABLE = "TERAN_GALLERY_PRECISION"
"""How embeddings are kept in a GPU's memory."""
WRITE_KEY_VARIABLE = "TERAN_WRITE_KEY"
"""What must come with writes."""


class LogLevel(StrEnum):
    """From which level on models write."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"


def available_cores() -> int:
    """Cores this process may use: its affinity, cut down to a container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
