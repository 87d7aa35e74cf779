"""TensorRT: plans for the GPU they are built on, served by Triton's own `tensorrt` backend.

Graphs in fp32, fp16 and bf16 are exported from a model in that precision; int8 and fp8 are put into
those in fp16. Not run yet on a machine with TensorRT: what can be told without
it is checked by the tests, and those marked `tensorrt` do the rest where it is installed.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from teran.contract import USUAL_REGIONS
from teran.detector import DetectorConfig
from teran.extras import needs
from teran.runtime.plan import Plan
from teran.tokenizer import MAX_WORD_PIECES
from teran_export.engines.base import Run, Source
from teran_export.graphs import ALIGNMENT, TEXTUAL_ENCODER, Arrays, Graph
from teran_export.limits import MAX_REGIONS
from teran_export.onnx_graphs import write_graph
from teran_export.options import BuildOptions
from teran_export.tensorrt.builder import build_plan, make_logger
from teran_export.tensorrt.profiles import GRAPH_WORDS, Profile, detector_profiles, profiles
from teran_export.tensorrt.quantize import quantize

_QUANTIZED = ("int8", "fp8")
HALF = "fp16"
"""What is not quantised is in that: the graph is kept, to be quantised in more than one way."""
_FP8_CAPABILITY = (8, 9)
_QUEUED_BATCHES = 16
"""So many full batches may wait; more is refused at once, rather than answered too late."""
_TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3, "bf16": None}
"""What ONNX Runtime may differ by from PyTorch in the same precision."""
_OPSET = 21
"""Q/DQ pairs of half precision need 19."""


class TensorRtEngine:
    """Serves `model.plan`."""

    name: str = "tensorrt"
    backend: str = "tensorrt"
    starts_from_onnx = False
    """Not from the graphs in fp32: from typed ones, in its precision."""
    on_gpu = True
    files: tuple[str, ...] = ("model.plan",)

    @property
    def runs_here(self) -> bool:
        return torch.cuda.is_available()

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:  # noqa: ARG002
        if importlib.util.find_spec("tensorrt") is None or not self.runs_here:
            return ()
        fp8 = torch.cuda.get_device_capability() >= _FP8_CAPABILITY
        return ("fp32", "bf16", "fp16", "int8", *(("fp8",) if fp8 else ()))

    def build(
        self, source: Source, directory: Path, precision: str, samples: Iterable[Arrays]
    ) -> None:
        onnx_file = typed_graph(source, precision, samples)
        self.compile(source, onnx_file, directory, precision)
        if precision != HALF:
            onnx_file.unlink()

    def compile(self, source: Source, onnx_file: Path, directory: Path, precision: str) -> None:
        """Build the plan of a typed graph.

        Raises:
            ExportError: TensorRT can't take it; names the layer.
        """
        built = build_plan(
            self.library(),
            onnx_file,
            directory / self.files[0],
            self.profiles(source),
            source.options,
            source.timing_cache,
            source.report,
            self.capabilities(source.options, precision),
        )
        source.report(
            f"  {source.graph.name}: {built.plan_bytes >> 20} MiB plan in {built.seconds} s, "
            f"{built.peak_host_bytes >> 20} MiB of host memory at the peak"
        )

    def library(self) -> Any:
        """The builder's module, which is the runtime's too."""
        with needs("tensorrt"):
            import tensorrt
        return tensorrt

    def capabilities(self, options: BuildOptions, precision: str) -> Sequence[str]:  # noqa: ARG002
        """The GPUs to build for, as the library names them; none for the one that is here.

        Raises:
            ExportError: those that are asked for can't be built for.
        """
        return ()

    def profiles(self, source: Source) -> list[Profile]:
        """The optimization profiles of a part."""
        config = source.model.config
        if isinstance(config, DetectorConfig):
            return detector_profiles(source.graph, config, source.largest_batch)
        words = min(MAX_WORD_PIECES, config.text.max_position_embeddings)
        return profiles(source.graph, config, source.largest_batch, words, MAX_REGIONS)

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:  # noqa: ARG002
        plan = self.load_plan(directory / self.files[0])

        def run(inputs: Arrays) -> Arrays:
            tensors = {name: torch.from_numpy(inputs[name]).cuda() for name in graph.inputs}
            return {name: value.cpu().numpy() for name, value in plan.run(tensors).items()}

        return run

    def load_plan(self, path: Path) -> Plan:
        """A plan on the GPU."""
        trt = self.library()
        return Plan(trt, path, make_logger(trt))

    def configure(self, config: Any, source: Source, precision: str) -> None:  # noqa: ARG002
        """Profiles, CUDA graphs of single items, a copy stream, and a bounded queue."""
        config.platform = "tensorrt_plan"
        config.instance_group[0].profile.extend(str(i) for i in range(len(self.profiles(source))))
        if source.graph == ALIGNMENT or isinstance(source.model.config, DetectorConfig):
            return
        config.optimization.cuda.graphs = True
        config.optimization.cuda.output_copy_stream = True
        graph = source.graph
        usual = GRAPH_WORDS if graph == TEXTUAL_ENCODER else (USUAL_REGIONS,)
        for rows in usual:
            spec = config.optimization.cuda.graph_spec.add(batch_size=1)
            sizes = dict.fromkeys(graph.axes, rows)
            for name in graph.inputs:
                spec.input[name].dim.extend(graph.shape(name, source.model.config, sizes)[1:])
        policy = config.dynamic_batching.default_queue_policy
        policy.max_queue_size = _QUEUED_BATCHES * source.largest_batch

    def versions(self) -> dict[str, str]:
        if not self.precisions():
            return {"tensorrt": "none"}
        return {"tensorrt": self.library().__version__, **gpu()}


def gpu() -> dict[str, str]:
    """What plans of this host's GPU are for; empty without one."""
    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    return {"gpu": torch.cuda.get_device_name(), "compute_capability": f"{major}.{minor}"}


def typed_graph(source: Source, precision: str, samples: Iterable[Arrays]) -> Path:
    """Write a part's ONNX file in a precision, as strongly typed networks want it.

    It lies beside the source's. What is in float is written once for each folder.

    Raises:
        ExportError: it differs from PyTorch in the same precision, or does not fit it.
    """
    graph, folder = source.graph, source.onnx.parent
    path = folder / f"{graph.name}.{precision}.onnx"
    if precision in _QUANTIZED:
        half = typed_graph(source, HALF, samples)
        quantize(half, path, precision, samples, (*graph.kept_in_float, *source.kept_in_float))
    elif not path.is_file():
        write_graph(
            graph, source.model, folder, precision, tolerance=_TOLERANCE[precision], opset=_OPSET
        )
        graph.path(folder).rename(path)
    return path
