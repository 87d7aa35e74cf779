"""Stand-in for Triton's `tensorrt` backend on hosts that have TensorRT, but no such backend."""

from pathlib import Path

import tensorrt

from teran.runtime.backend import Run
from teran.runtime.plan import Plan
from teran.runtime.torch_backend import TorchBackend


class TritonPythonModel(TorchBackend):
    """Runs `model.plan`."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:  # noqa: ARG002
        return Plan(tensorrt, path, tensorrt.Logger(tensorrt.Logger.WARNING)).run
