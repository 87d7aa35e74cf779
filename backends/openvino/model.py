"""Stand-in for Triton's `openvino` backend on hosts without it: same files, same parameters."""

import os
from pathlib import Path

from teran.runtime.backend import Arrays, EngineBackend, Run
from teran.runtime.silent_openvino import openvino

_KERNELS = 512
"""Kept for shapes that may come again. Of a small encoder a new shape takes a megabyte, and there
are thousands: of so many images, of so many regions each. By default nearly all would be kept."""
_PRIMITIVES = 64
"""Which oneDNN keeps in any case, besides."""


class TritonPythonModel(EngineBackend):
    """Runs `model.xml` on the CPU."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:
        bf16 = parameters.get("HINT_BF16", "NO").upper() == "YES"
        count = threads or int(parameters.get("INFERENCE_NUM_THREADS", 0))
        options = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Models that share the cores must not all be bound to the first ones.
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_NUM_THREADS": count,
            "CPU_RUNTIME_CACHE_CAPACITY": _KERNELS,
        }
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRIMITIVES))
        core = openvino.Core()
        model = core.read_model(path)
        any_shape = core.compile_model(model, "CPU", options).create_infer_request()
        # An engine for one known shape fuses more: half a millisecond off a single caption.
        single = {}
        for rows in map(int, filter(None, parameters.get("static_rows", "").split(","))):
            fixed = model.clone()
            fixed.reshape({port: [1, rows, *port.partial_shape[2:]] for port in fixed.inputs})
            single[1, rows] = core.compile_model(fixed, "CPU", options).create_infer_request()
        first = model.inputs[0].any_name

        def run(inputs: Arrays) -> Arrays:
            request = single.get(inputs[first].shape[:2], any_shape)
            # The outputs are read before the next run, so they need no copy.
            results = request.infer(inputs, share_inputs=True, share_outputs=True)
            return {output.any_name: value for output, value in results.items()}

        return run
