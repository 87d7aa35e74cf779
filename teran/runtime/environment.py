"""What model processes learn from environment variables, and how many cores there are."""

import os
from enum import StrEnum
from pathlib import Path

THREADS_VARIABLE = "TERAN_THREADS_{model}"
"""An engine's part of the server's thread budget. Set before the server starts, it decides."""
LOG_LEVEL_VARIABLE = "TERAN_LOG_LEVEL"
"""From which level on to write; a `LogLevel`."""
METRICS_DIRECTORY_VARIABLE = "TERAN_METRICS_DIRECTORY"
"""Where to record; nothing is recorded without it."""

LOAD_FILE_VARIABLE = "TERAN_LOAD_FILE"
"""Where the supervisor says how much work waits; without it nothing is refused for that."""

TICKETS_VARIABLE = "TERAN_TICKETS"
"""The socket at which the gallery tells what became of a write."""


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
