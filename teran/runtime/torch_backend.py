"""What the stand-ins that run on torch tensors share.

Tensors stay torch's from the request to the response, passed by DLPack: on a GPU, what one model
leaves there the next one finds there.
"""

from typing import Any

import torch
import triton_python_backend_utils as pb_utils
from torch.utils.dlpack import from_dlpack

from teran.runtime.backend import EngineBackend


class TorchBackend(EngineBackend):
    """An `EngineBackend` on the instance's device."""

    def initialize(self, args: dict[str, str]) -> None:
        on_gpu = args["model_instance_kind"] == "GPU"
        self.device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        super().initialize(args)

    def read(self, tensor: Any) -> torch.Tensor:
        if tensor.is_cpu():
            return torch.from_numpy(tensor.as_numpy()).to(self.device)
        return from_dlpack(tensor.to_dlpack()).to(self.device)

    def write(self, name: str, value: torch.Tensor) -> Any:
        return pb_utils.Tensor.from_dlpack(name, value.contiguous())

    def join(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)

    def divide(self, value: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
        return list(value.split(sizes))

    def is_finite(self, value: torch.Tensor) -> bool:
        return bool(value.isfinite().all())
