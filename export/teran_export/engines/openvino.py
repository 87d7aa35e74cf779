"""OpenVINO: the fastest engine on x86 CPUs. fp32, bf16 where the CPU has it, int8 through NNCF."""

import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from teran.runtime.silent_openvino import openvino
from teran_export.engines.base import Run, Source
from teran_export.graphs import Arrays, Graph
from teran_export.options import BuildOptions

_QUANTISED = ("MatMul", "Convolution")


class OpenVinoEngine:
    """Serves `model.xml` through Triton's `openvino` backend."""

    name = backend = "openvino"
    starts_from_onnx = True
    on_gpu = False
    runs_here = True
    files: tuple[str, ...] = ("model.xml", "model.bin")

    def __init__(self) -> None:
        self._core = openvino.Core()

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:  # noqa: ARG002
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return [p for p in ("fp32", "bf16", "int8") if p.upper() in capabilities]

    def build(
        self, source: Source, directory: Path, precision: str, samples: Iterable[Arrays]
    ) -> None:
        model = self._core.read_model(source.onnx)
        model.set_friendly_name(source.graph.name)
        if precision == "int8":
            model = _quantise(model, source, list(samples))
        openvino.save_model(model, directory / self.files[0], compress_to_fp16=False)

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:
        # bf16 is an instruction to the compiler; the file is the same as for fp32.
        hint = "bf16" if precision == "bf16" else "f32"
        compiled = self._core.compile_model(
            directory / self.files[0],
            "CPU",
            {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"},
        )

        def run(inputs: Arrays) -> Arrays:
            results = compiled(inputs)
            return {name: results[name] for name in graph.outputs}

        return run

    def configure(self, config: Any, source: Source, precision: str) -> None:  # noqa: ARG002
        if precision == "bf16":
            config.parameters["HINT_BF16"].string_value = "YES"

    def versions(self) -> dict[str, str]:
        return {"openvino": openvino.__version__, "nncf": version("nncf")}


def _quantise(model: openvino.Model, source: Source, samples: list[Arrays]) -> openvino.Model:
    """Quantise weights and activations to int8; LayerNorm, softmax and GELU stay in float."""
    import nncf  # after OpenVINO, which it would import as it is

    parts = (*source.graph.kept_in_float, *source.kept_in_float)
    kept = [
        node.get_friendly_name()
        for node in model.get_ops()
        if any(part in node.get_friendly_name() for part in parts)
        and node.get_type_name() in _QUANTISED
    ]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER if source.graph.is_transformer else None,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
    )
