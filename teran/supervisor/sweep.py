"""Shared memory of clients that have died, which the server still has mapped."""

from collections.abc import Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from teran.contract import ADMIN_KEY_HEADER, SEGMENT_PREFIX
from teran.lease import abandoned


def sweep(stub: Any, admin_key: str, timeout: float, report: Callable[[str, str], None]) -> None:
    """Have the server let go of it.

    Args:
        stub: of Triton's service.
        admin_key: which such calls need.
        timeout: seconds for each.
        report: told what was done, and with what severity.
    """
    left = abandoned()
    if not left:
        return
    options = {"metadata": [(ADMIN_KEY_HEADER, admin_key)], "timeout": timeout}

    def call(verb: str, /, **arguments: str) -> Any:
        request = getattr(service_pb2, f"{verb}Request")(**arguments)
        return getattr(stub, verb)(request, **options)

    try:
        for kind in ("System", "Cuda"):
            for name in call(f"{kind}SharedMemoryStatus").regions:
                if name.removeprefix(SEGMENT_PREFIX).split("-")[0] in left:
                    call(f"{kind}SharedMemoryUnregister", name=name)
                    report(f"let go of {name}, whose client has died", "INFO")
    except grpc.RpcError as error:
        report(f"shared memory can't be looked through: {error.details()}", "WARNING")
