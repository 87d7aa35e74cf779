"""OpenVINO without its telemetry: `from teran.runtime.silent_openvino import openvino`.

When it is imported it tells its makers, from a process that a thread forks. A server's users are
nobody's business; and a child forked beside other threads may wait for ever for a lock that one of
them held, and its parent for the child, so that the server does not stop.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # "not installed"

import openvino  # noqa: E402

__all__ = ["openvino"]
