"""AOTInductor packages on any Triton; its own `pytorch` backend knows them from 26.03 on."""

from pathlib import Path

import torch

from teran.runtime.backend import Arrays, Run
from teran.runtime.cuda_graph import GraphedRun
from teran.runtime.torch_backend import TorchBackend


class TritonPythonModel(TorchBackend):
    """Runs `model.pt2`."""

    def load(self, path: Path, parameters: dict[str, str], threads: int | None) -> Run:  # noqa: ARG002
        if threads:
            torch.set_num_threads(threads)
        package = torch._inductor.aoti_load_package(str(path))

        def run(inputs: Arrays) -> Arrays:
            with torch.inference_mode():
                outputs = package(*(inputs[name] for name in self.input_names))
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            return dict(zip(self.output_names, outputs, strict=True))

        return GraphedRun(run) if self.device.type == "cuda" else run
