"""Large inputs by shared memory, where client and server are on one host.

A batch of 32 images is 9.4 MB, which gRPC copies several times. Here it is written once, where the
server reads it. Where the server does not allow that, or lives in a container of its own and can't
see it, inputs go through gRPC as before; the first large request finds out.
"""

import ipaddress
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from teran.contract import ADMIN_KEY_HEADER
from teran.errors import TeranError
from teran.lease import Lease
from teran.secrets import find_key
from teran_client.channel import Channel
from teran_client.cuda_memory import CudaSegment
from teran_client.segment import ALIGNMENT, FOLDER, Segment

SMALLEST = 256 << 10
"""Bytes of inputs below which gRPC is as fast."""
_PATIENCE = 2.0
"""Seconds the server gets to open a segment, or to let go of one."""
_log = logging.getLogger(__name__)


class SharedMemory:
    """The segments of one client."""

    def __init__(self, channel: Channel, wanted: bool | Literal["cuda"] | None) -> None:
        """Decide what to try: the system's where the server's address is this host's, unless told.

        A GPU's memory is tried first where that is wanted, and the system's after it.
        """
        self._channel = channel
        self._kinds: list[type[Segment]] = []
        if wanted == "cuda":
            self._kinds.append(CudaSegment)
        here = _is_loopback(channel.url) if wanted in (None, "cuda") else wanted
        if here and FOLDER.is_dir():
            self._kinds.append(Segment)
        if "," in channel.url or channel.url.startswith("dns:"):
            self._kinds.clear()  # of several servers one would not know what another was told
        self._lease: Lease | None = None
        self._free: list[Segment] = []
        self._all: list[Segment] = []
        self._unwanted: list[Segment] = []

    @property
    def usable(self) -> bool:
        """Whether there is a kind of memory left that has not failed."""
        return bool(self._kinds)

    @asynccontextmanager
    async def segment(self, inputs: dict[str, npt.NDArray[Any]]) -> AsyncIterator[Segment | None]:
        """A segment with room for some inputs; None where they should go through gRPC.

        Raises:
            TeranError: this is a forked child, whose parent uses the segments.
        """
        self._channel.check_process()
        numbers = [value for value in inputs.values() if value.dtype != np.object_]
        size = sum(value.nbytes + ALIGNMENT for value in numbers)
        segment = await self._acquire(size) if self.usable and size >= SMALLEST else None
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
        if self._channel.is_inherited:
            return
        for segment in list(self._all):
            await self._drop(segment)
        if self._lease and not self._unwanted:
            self._lease.end()
            self._lease = None

    async def _acquire(self, size: int) -> Segment | None:
        for segment in self._free:
            if segment.size >= size:
                self._free.remove(segment)
                segment.clear()
                return segment
        while self._kinds:
            kind = self._kinds[0]
            try:
                made = await self._make(kind, 1 << (size - 1).bit_length())
            except (OSError, ImportError, TeranError) as error:  # some of them of the lease
                _log.info("no %s with %s: %s", kind.__name__, self._channel.url, error)
                if kind in self._kinds:  # another call may have given it up meanwhile
                    self._kinds.remove(kind)
            else:
                self._all.append(made)
                return made
        return None

    async def _make(self, kind: type[Segment], size: int) -> Segment:
        self._lease = self._lease or Lease()
        made = kind(size, self._lease.token)
        try:
            request = made.register_request()
            await self._call(made.register_method, request)
        except BaseException:
            made.close()
            raise
        finally:
            made.opened()
        return made

    async def _drop(self, segment: Segment) -> None:
        """Have the server let go of a segment; one it still reads is tried again with the next."""
        if segment not in self._all:  # the client was closed meanwhile
            return
        self._all.remove(segment)
        if segment in self._free:
            self._free.remove(segment)
        unwanted, self._unwanted = [*self._unwanted, segment], []
        for one in unwanted:
            request = one.unregister_request(name=one.name)
            try:
                await self._call(one.unregister_method, request)
            except TeranError:
                self._unwanted.append(one)
            else:
                one.close()

    async def _call(self, method: str, request: Any) -> None:
        """Call what a server allows to those who bring its key, as clients of its user can."""
        port = self._channel.url.rpartition(":")[2]
        here = port.isdigit() and _is_loopback(self._channel.url)
        key = find_key(int(port)) if here else None  # which leaves this host for nobody
        headers = {ADMIN_KEY_HEADER: key} if key else {}
        await self._channel.call(method, request, _PATIENCE, retry=False, headers=headers)


def _is_loopback(url: str) -> bool:
    host = url.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
