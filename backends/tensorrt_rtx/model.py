"""Triton's backend for plans of TensorRT-RTX, of which Triton has none of its own.

A further parameter: `cuda_graph_profiles`, with commas, whose runs become CUDA graphs.
"""

from pathlib import Path

import tensorrt_rtx_bindings as tensorrt_rtx

from teran.runtime.backend import Run
from teran.runtime.rtx import RtxPlan
from teran.runtime.torch_backend import TorchBackend


class TritonPythonModel(TorchBackend):
    """Runs `model.plan`."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:  # noqa: ARG002
        logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.WARNING)
        profiles = parameters.get("cuda_graph_profiles", "").split(",")
        self._plan = RtxPlan(
            tensorrt_rtx,
            path,
            logger,
            path.with_suffix(".kernels"),
            [int(one) for one in profiles if one],
        )
        return self._plan.run

    def finalize(self) -> None:
        """Keep what was compiled."""
        self._plan.keep()
