"""Large inputs by system shared memory, where client and server are on one host.

A batch of 32 images is 9.4 MB, which gRPC copies several times. Here it is written once, where the
server reads it. Where the server does not allow that, or lives in a container of its own and can't
see it, inputs go through gRPC as before; the first large request finds out.
"""

import ipaddress
import logging
import mmap
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from teran.errors import TeranError
from teran_client.channel import Channel

SMALLEST = 256 << 10
"""Bytes of inputs below which gRPC is as fast."""
_ALIGNMENT = 64
_FOLDER = Path("/dev/shm")
_PATIENCE = 2.0
"""Seconds the server gets to open a segment, or to let go of one."""
_log = logging.getLogger(__name__)


class Segment:
    """Shared memory that a server has opened, for one request at a time."""

    def __init__(self, size: int) -> None:
        """Make one.

        Raises:
            OSError: there is no room for it.
        """
        # Nobody else's, even on another host with the same process numbers.
        self.name = f"teran-client-{secrets.token_hex(16)}"
        self.size = size
        path = _FOLDER / self.name
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
        self._used = offset + value.nbytes + -value.nbytes % _ALIGNMENT
        return offset

    def unlink(self) -> None:
        """Take its name away; who has opened it keeps it."""
        with suppress(OSError):
            (_FOLDER / self.name).unlink()


class SharedMemory:
    """The segments of one client."""

    def __init__(self, channel: Channel, wanted: bool | None) -> None:
        """Decide whether to try: where the server's address is this host's, unless told."""
        self._channel = channel
        self.usable = (_is_loopback(channel.url) if wanted is None else wanted) and _FOLDER.is_dir()
        self._free: list[Segment] = []
        self._all: list[Segment] = []
        self._unwanted: list[str] = []

    @asynccontextmanager
    async def segment(self, inputs: dict[str, npt.NDArray[Any]]) -> AsyncIterator[Segment | None]:
        """A segment with room for some inputs; None where they should go through gRPC."""
        numbers = [value for value in inputs.values() if value.dtype != np.object_]
        size = sum(value.nbytes + _ALIGNMENT for value in numbers)
        segment = await self._take(size) if self.usable and size >= SMALLEST else None
        try:
            yield segment
        except BaseException:  # the server may read it still, or may have forgotten it
            if segment:
                await self._drop(segment)
            raise
        if segment:
            self._free.append(segment)

    async def close(self) -> None:
        """Have the server let go of all of it."""
        for segment in list(self._all):
            await self._drop(segment)

    async def _take(self, size: int) -> Segment | None:
        for segment in self._free:
            if segment.size >= size:
                self._free.remove(segment)
                segment.clear()
                return segment
        try:
            made = Segment(1 << (size - 1).bit_length())
        except OSError as error:
            self._give_up(error)
            return None
        try:
            request = pb.SystemSharedMemoryRegisterRequest(
                name=made.name, key=f"/{made.name}", byte_size=made.size
            )
            await self._channel.call("SystemSharedMemoryRegister", request, _PATIENCE, retry=False)
        except TeranError as error:
            self._give_up(error)
            return None
        finally:
            made.unlink()  # the server has opened it; so nothing is ever left behind
        self._all.append(made)
        return made

    def _give_up(self, error: Exception) -> None:
        _log.info("no shared memory with %s: %s", self._channel.url, error)
        self.usable = False

    async def _drop(self, segment: Segment) -> None:
        """Have the server let go of a segment; one it still reads is tried again with the next."""
        if segment not in self._all:  # the client was closed meanwhile
            return
        self._all.remove(segment)
        if segment in self._free:
            self._free.remove(segment)
        names, self._unwanted = [*self._unwanted, segment.name], []
        for name in names:
            request = pb.SystemSharedMemoryUnregisterRequest(name=name)
            try:
                await self._channel.call(
                    "SystemSharedMemoryUnregister", request, _PATIENCE, retry=False
                )
            except TeranError:
                self._unwanted.append(name)


def _is_loopback(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
