"""What shows that a client lives: a locked file, which the kernel unlocks when it dies.

Servers and clients of one user on a host know each other by it, whatever namespaces they are in.
"""

import fcntl
import os
import time
from contextlib import suppress
from secrets import token_hex

from teran.errors import ServingError
from teran.secrets import own_folder

_PREFIX = "client-"
_KEPT = 86_400.0
"""Seconds since its begin that an abandoned lease stays: all servers should see it."""


class Lease:
    """Held from the start until it is ended, or its process has died."""

    def __init__(self) -> None:
        """Begin.

        Raises:
            OSError: the file can't be made.
            ServingError: its folder could be somebody else's.
        """
        self.token = token_hex(8)
        self._path = own_folder() / f"{_PREFIX}{self.token}"
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def end(self) -> None:
        """End it in good order."""
        with suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)


def abandoned() -> set[str]:
    """Tokens of leases whose processes have died."""
    tokens = set()
    with suppress(OSError, ServingError):
        for path in own_folder().glob(f"{_PREFIX}*"):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                tokens.add(path.name.removeprefix(_PREFIX))
                if time.time() - path.stat().st_mtime > _KEPT:
                    path.unlink()
    return tokens
