"""Stand-in for Triton's `pytorch` backend where that knows no AOTInductor packages (before 26.03).

Tensors stay torch's from the request to the response, passed by DLPack: on a GPU, what one model
leaves there the next one finds there.
"""

import json
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from teran.serving.backend import Arrays, EngineBackend, Run


class TritonPythonModel(EngineBackend):
    """Runs `model.pt2` on the instance's device."""

    def initialize(self, args: dict[str, str]) -> None:
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        self._order = [tensor["name"] for tensor in json.loads(args["model_config"])["output"]]
        super().initialize(args)

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:  # noqa: ARG002
        if threads:
            torch.set_num_threads(threads)
        package = torch._inductor.aoti_load_package(str(path))

        def run(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                outputs = package(*(inputs[name] for name in self._inputs))
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            return dict(zip(self._order, outputs, strict=True))

        return run

    def read(self, tensor: Any) -> torch.Tensor:
        if tensor.is_cpu():
            # A bool has no type of its own in DLPack's older versions.
            return torch.from_numpy(tensor.as_numpy()).to(self._device)
        return from_dlpack(tensor.to_dlpack()).to(self._device)

    def write(self, name: str, value: torch.Tensor) -> Any:
        return pb_utils.Tensor.from_dlpack(name, value.contiguous())

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)

    def divide(self, value: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
        return list(value.split(sizes))

    def is_finite(self, value: torch.Tensor) -> bool:
        return bool(value.isfinite().all())

    def kind(self, value: torch.Tensor) -> str:
        if value.is_floating_point():
            return "f"
        return "b" if value.dtype is torch.bool else "i"
