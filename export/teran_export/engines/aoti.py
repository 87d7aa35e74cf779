"""AOTInductor: PyTorch's own compiler, ahead of time. fp32 on CPUs; bf16, fp16 and fp32 on GPUs.

Every part goes through torch.export with dynamic shapes. Served by this project's `aoti` backend on
any Triton, or by Triton's own `pytorch` backend from release 26.03 on.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package

from teran.errors import ExportError
from teran_export.engines.base import Run, Source
from teran_export.graphs import Arrays, Graph, export_program
from teran_export.options import BuildOptions


class AotiEngine:
    """Serves `model.pt2`, compiled for this host's processor or its GPU."""

    name = "aoti"
    backend = "aoti"
    starts_from_onnx = False
    runs_here = True
    files: tuple[str, ...] = ("model.pt2",)

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if self.on_gpu else "cpu")

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:  # noqa: ARG002
        return ("fp32", "fp16", "bf16") if self.on_gpu else ("fp32",)

    def build(
        self,
        source: Source,
        directory: Path,
        precision: str,
        samples: Iterable[Arrays],  # noqa: ARG002
    ) -> None:
        path = directory / self.files[0]
        try:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                program = export_program(source.graph, source.model, precision, self._device)
                aoti_compile_and_package(program, package_path=str(path))
        except Exception as error:  # whatever the compiler raises
            raise ExportError(
                f"AOTInductor can't compile {source.graph.name} in {precision}: {error}"
            ) from error

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:  # noqa: ARG002
        package, device = aoti_load_package(str(directory / self.files[0])), self._device

        def run(inputs: Arrays) -> Arrays:
            tensors = [torch.from_numpy(inputs[name]).to(device) for name in graph.inputs]
            with torch.inference_mode():
                outputs = package(*tensors)
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            return {
                name: value.cpu().numpy()
                for name, value in zip(graph.outputs, outputs, strict=True)
            }

        return run

    def configure(self, config: Any, source: Source, precision: str) -> None:  # noqa: ARG002
        if source.options.native:
            config.backend, config.platform = "pytorch", "torch_aoti"
        if self.on_gpu:  # what the model before left on the GPU is taken from there
            config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value = "no"

    def versions(self) -> dict[str, str]:
        gpu = torch.cuda.get_device_name() if self.on_gpu else "none"
        return {"torch": torch.__version__, "gpu": gpu}
