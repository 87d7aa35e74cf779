"""Segments in a GPU's memory, for clients and servers that share the GPU.

A server whose encoder runs there finds its inputs in place. Never automatic: the client has to copy
to the GPU itself, which pays only where the server would do so on the same host's behalf.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2 as pb

from teran_client.segment import ALIGNMENT, Segment, segment_name


class CudaSegment(Segment):
    """Like a `Segment`, on the current CUDA device."""

    register_method = "CudaSharedMemoryRegister"
    unregister_method = "CudaSharedMemoryUnregister"
    unregister_request = pb.CudaSharedMemoryUnregisterRequest

    def __init__(self, size: int, owner: str) -> None:
        """Allocate one; see `Segment`.

        Raises:
            OSError: there is no GPU, or no room on it.
            ImportError: cuda-bindings is not installed.
        """
        import cuda.bindings.runtime as cudart

        self._cudart: Any = cudart
        self.name, self.size, self._used = segment_name(owner), size, 0
        try:
            self._device = self._call("cudaGetDevice")
            self._address = int(self._call("cudaMalloc", size))
        except RuntimeError as error:  # no driver at all
            raise OSError(str(error)) from error

    def register_request(self) -> Any:
        handle = self._call("cudaIpcGetMemHandle", self._address)
        return pb.CudaSharedMemoryRegisterRequest(
            name=self.name,
            raw_handle=bytes(handle.reserved),
            device_id=self._device,
            byte_size=self.size,
        )

    def write(self, value: npt.NDArray[Any]) -> int:
        offset, value = self._used, np.ascontiguousarray(value)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", self._address + offset, value.ctypes.data, value.nbytes, kind)
        self._used = offset + value.nbytes + -value.nbytes % ALIGNMENT
        return offset

    def opened(self) -> None:
        """Nothing: the memory has no name to take away."""

    def close(self) -> None:
        self._call("cudaFree", self._address)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cudart, function)(*arguments)
        if status != self._cudart.cudaError_t.cudaSuccess:
            raise OSError(f"{function}: {status.name}")
        return results[0] if results else None
