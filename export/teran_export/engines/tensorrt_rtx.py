"""TensorRT-RTX: plans for GeForce and RTX GPUs, built on any x86-64 Linux host, with a GPU or not.

A plan holds what is needed for every GPU it was built for; kernels are compiled on the one it runs
on. Where there is none, its typed graph is checked in its place, and the plan where it is served.
"""

import importlib.util
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from teran.errors import ExportError
from teran.extras import needs
from teran.runtime.plan import Plan
from teran.runtime.rtx import RtxPlan
from teran_export.engines.base import Run, Source
from teran_export.engines.tensorrt import HALF, TensorRtEngine, gpu, typed_graph
from teran_export.graphs import ALIGNMENT, Arrays, Graph
from teran_export.options import BuildOptions
from teran_export.tensorrt.builder import make_logger

_PACKAGE = "tensorrt-rtx-cu12-bindings"
_LEAST, _FP8 = 80, 89
"""Compute capabilities: for 7.5 there are no matmuls in fp32, which the alignment is in."""
_GRAPH = "typed.onnx"
"""What a plan was built from, where that can't be run."""
_MODULE = "typed.pt"
"""The same as PyTorch's module, for what ONNX Runtime has no kernels for on a CPU."""


class TensorRtRtxEngine(TensorRtEngine):
    """Serves `model.plan` through the project's own backend for it."""

    name = "tensorrt-rtx"
    backend = "tensorrt_rtx"

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:
        if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
            return ()
        self.capabilities(options, "fp32")
        return ("fp32", "bf16", "fp16", "int8", "fp8")

    def library(self) -> Any:
        with needs("tensorrt-rtx"):
            import tensorrt_rtx_bindings
        return tensorrt_rtx_bindings

    def build(
        self, source: Source, directory: Path, precision: str, samples: Iterable[Arrays]
    ) -> None:
        self.capabilities(source.options, precision)  # or it is refused before the long part
        if self.runs_here or source.graph == ALIGNMENT:
            super().build(source, directory, precision, samples)
            return
        onnx_file = typed_graph(source, precision, samples)
        self.compile(source, onnx_file, directory, precision)
        # Moved, but for the one that others are quantised from.
        (shutil.copyfile if precision == HALF else shutil.move)(onnx_file, directory / _GRAPH)
        if precision == "bf16":
            module = source.graph.module_in(source.model, precision)
            torch.save(module, directory / _MODULE)

    def capabilities(self, options: BuildOptions, precision: str) -> Sequence[str]:
        least = _FP8 if precision == "fp8" else _LEAST
        names = [one for one in self.library().ComputeCapability.__members__ if one[:2] == "SM"]
        known = {f"{name[2:-1]}.{name[-1]}": name for name in names if int(name[2:]) >= least}
        given = [one.strip() for one in options.compute_capabilities.split(",") if one.strip()]
        if not given:
            return ["CURRENT"] if self.runs_here else list(known.values())
        unknown = [one for one in given if one not in known]
        if unknown:
            raise ExportError(
                f"TensorRT-RTX does not build {'fp8' if least == _FP8 else 'this model'} for "
                f"compute capability {', '.join(unknown)}; there are {', '.join(known)}"
            )
        return [known[one] for one in given]

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:
        if not self.runs_here:
            return self._load_graph(graph, directory, precision)
        return super().load(graph, directory, precision)

    def load_plan(self, path: Path) -> Plan:
        trt = self.library()
        return RtxPlan(trt, path, make_logger(trt))

    def _load_graph(self, graph: Graph, directory: Path, precision: str) -> Run:
        """What the plan was built from, to be run on the CPU."""
        if precision == "bf16":
            module = torch.load(directory / _MODULE, weights_only=False)  # ours, of just now

            def run_module(inputs: Arrays) -> Arrays:
                with torch.inference_mode():
                    results = module(*(torch.from_numpy(inputs[name]) for name in graph.inputs))
                results = results if isinstance(results, tuple) else (results,)
                return {name: v.numpy() for name, v in zip(graph.outputs, results, strict=True)}

            return run_module
        session = onnxruntime.InferenceSession(
            directory / _GRAPH, providers=["CPUExecutionProvider"]
        )

        def run(inputs: Arrays) -> Arrays:
            wanted = {name: inputs[name] for name in graph.inputs}
            return dict(zip(graph.outputs, session.run(list(graph.outputs), wanted), strict=True))

        return run

    def configure(self, config: Any, source: Source, precision: str) -> None:  # noqa: ARG002
        """Which profiles are for single items, whose launches are worth a CUDA graph."""
        if source.graph != ALIGNMENT:
            config.parameters["cuda_graph_profiles"].string_value = "0"

    def versions(self) -> dict[str, str]:
        if not self.precisions():
            return {_PACKAGE: "none"}
        return {_PACKAGE: self.library().__version__, **gpu()}
