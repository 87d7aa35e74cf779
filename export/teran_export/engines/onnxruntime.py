"""ONNX Runtime: the graph as it is, in fp32. Portable, and the reference for the others."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from teran_export.engines.base import Run, Source
from teran_export.graphs import Arrays, Graph
from teran_export.options import BuildOptions


class OnnxRuntimeEngine:
    """Serves `model.onnx` through Triton's `onnxruntime` backend."""

    name = backend = "onnxruntime"
    starts_from_onnx = True
    on_gpu = False
    runs_here = True
    files: tuple[str, ...] = ("model.onnx",)

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:  # noqa: ARG002
        return ("fp32",)

    def build(
        self,
        source: Source,
        directory: Path,
        precision: str,  # noqa: ARG002
        samples: Iterable[Arrays],  # noqa: ARG002
    ) -> None:
        shutil.copyfile(source.onnx, directory / self.files[0])

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:  # noqa: ARG002
        session = onnxruntime.InferenceSession(
            directory / self.files[0], providers=["CPUExecutionProvider"]
        )
        return lambda inputs: dict(zip(graph.outputs, session.run(None, inputs), strict=True))

    def configure(self, config: Any, source: Source, precision: str) -> None:
        """Nothing: the defaults serve."""

    def versions(self) -> dict[str, str]:
        return {"onnxruntime": onnxruntime.__version__}
