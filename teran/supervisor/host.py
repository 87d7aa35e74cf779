"""What a server needs of its host, and what killed ones left there: shared memory and ports."""

import random
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import psutil

from teran.errors import ServingError

SHM = Path("/dev/shm")
_CONNECTION_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
LEAST_SHARED_MEMORY = 256 << 20
"""Bytes: every model process has a region, which grows to the largest batch it has seen."""
_MOST_FILES = 1 << 16
"""A gallery keeps several open for every length of its items, a server one for each connection."""
SHM_NAME = "teran-{pid}-"
RUNTIME_NAME = "teran-serve-{pid}-"
"""Of folders in the temporary directory; what a killed supervisor left is found by it."""
_OWNER = re.compile(r"teran-(?:serve-)?(\d+)-")


def require_shared_memory(least: int = LEAST_SHARED_MEMORY) -> None:
    """Check that models can exchange tensors with the server.

    Raises:
        ServingError: /dev/shm is too small, as it is in a container by default.
    """
    free = shutil.disk_usage(SHM).free
    if free < least:
        raise ServingError(
            f"{SHM} has {free >> 20} MiB free, models need {least >> 20} for their tensors; in a "
            "container, start it with --shm-size 1g"
        )


def allow_open_files() -> None:
    """Let this process and those it starts open as many files as the host allows, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def leftovers() -> list[Path]:
    """Shared memory and folders of servers that were killed."""
    found = (*SHM.glob("teran-*"), *Path(tempfile.gettempdir()).glob("teran-serve-*"))
    owners = ((path, _OWNER.match(path.name)) for path in found)
    return [path for path, owner in owners if owner and not psutil.pid_exists(int(owner[1]))]


def remove_leftovers() -> list[Path]:
    """Remove what killed servers left behind; returns what went."""
    removed = []
    for path in leftovers():
        with suppress(OSError):  # another user's, or gone already
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path)
    return removed


def free_ports(host: str, count: int, besides: Collection[int] = ()) -> list[int]:
    """As many ports nothing listens on at `host` just now, all different.

    Not of those the kernel gives to connections, or one may have it before a server does.

    Args:
        host: where they are to be bound.
        count: how many.
        besides: ports that are spoken for, though nothing may listen on them yet.

    Raises:
        ServingError: there are not enough.
    """
    first = int(_CONNECTION_PORTS.read_text().split()[0])
    ports = set(range(max(1024, first // 2), max(2048, first))) - set(besides)
    free: list[int] = []
    reason = "all are in use"
    for port in random.sample(sorted(ports), len(ports)):
        if len(free) == count:
            break
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                free.append(port)
    if len(free) < count:
        raise ServingError(f"{count} free ports on {host} can't be found: {reason}")
    return free


def require_free(host: str, port: int, flag: str) -> None:
    """Check that `port` can be bound.

    Raises:
        ServingError: it can't; the message names the flag to change.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = "is in use" if error.errno == 98 else f"can't be used: {error.strerror}"
            raise ServingError(
                f"port {port} on {host} {reason}; choose another with {flag}, or 0 for a free one"
            ) from error
