"""One piece of shared memory, which a client writes and a server on its host reads."""

import mmap
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from teran.contract import SEGMENT_PREFIX

ALIGNMENT = 64
FOLDER = Path("/dev/shm")


def segment_name(owner: str) -> str:
    """A name nobody else has, with the token of its owner's lease."""
    return f"{SEGMENT_PREFIX}{owner}-{secrets.token_hex(8)}"


class Segment:
    """Shared memory that a server has opened, for one request at a time."""

    register_method = "SystemSharedMemoryRegister"
    unregister_method = "SystemSharedMemoryUnregister"
    unregister_request = pb.SystemSharedMemoryUnregisterRequest

    def __init__(self, size: int, owner: str) -> None:
        """Make one.

        Args:
            size: bytes.
            owner: token of the client's lease; a server lets go of what dead clients leave.

        Raises:
            OSError: there is no room for it.
        """
        self.name = segment_name(owner)
        self.size = size
        path = FOLDER / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)  # no room: an error now, not a signal later
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        self._used = 0

    def clear(self) -> None:
        """Forget what was written."""
        self._used = 0

    def write(self, value: npt.NDArray[Any]) -> int:
        """Add an array; returns its offset."""
        offset = self._used
        target: npt.NDArray[Any] = np.ndarray(value.shape, value.dtype, self._memory, offset)
        target[...] = value
        self._used = offset + value.nbytes + -value.nbytes % ALIGNMENT
        return offset

    def register_request(self) -> Any:
        """What makes a server open it."""
        return pb.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name}", byte_size=self.size
        )

    def opened(self) -> None:
        """Take its name away; a server that has opened it keeps it, and nothing is left behind."""
        with suppress(OSError):
            (FOLDER / self.name).unlink()

    def close(self) -> None:
        """Free it, when the server has let go of it. Here that happens by itself."""
