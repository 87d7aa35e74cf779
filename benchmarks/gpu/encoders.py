"""Encoders on a device: right in every precision, and how near to the ceilings."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from teran_export.engines import ENGINES
from teran_export.engines.base import Source
from teran_export.graphs import ALIGNMENT, GRAPHS, TEXTUAL_ENCODER, Graph, random_inputs
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.latency import multiply_adds
from teran.model import TeranModel
from teran.model.precision import in_precision
from teran.runtime.cuda_graph import GraphedRun

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]
REGIONS = 36


class Engines:
    """Every part of a model, eager and compiled, in every precision the device has."""

    def __init__(self, model: TeranModel, device: torch.device, work: Path) -> None:
        self.model, self.device, self._work = model, device, work
        self.precisions = ENGINES["aoti"].precisions()
        self._compiled: dict[tuple[str, str], Run] = {}

    def eager(self, graph: Graph, precision: str) -> Run:
        """The PyTorch module as it is."""
        model = copy.deepcopy(in_precision(self.model, precision)).to(self.device)
        return _named(graph, graph.module(model).eval().to(self.device))

    def compiled(self, graph: Graph, precision: str) -> Run:
        """The AOTInductor package, made when it is first asked for."""
        key = (graph.name, precision)
        if key not in self._compiled:
            folder = self._work / precision / graph.name
            folder.mkdir(parents=True, exist_ok=True)
            engine = ENGINES["aoti"]
            engine.build(Source(graph, folder / "none.onnx", self.model), folder, precision, [])
            package = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
            self._compiled[key] = _named(graph, package)
        return self._compiled[key]

    def inputs(self, graph: Graph, sizes: tuple[int, ...], seed: int = 0) -> Tensors:
        """Random valid inputs on the device."""
        made = random_inputs(graph, self.model.config, sizes, seed)
        return {name: torch.from_numpy(value).to(self.device) for name, value in made.items()}


def correctness(engines: Engines) -> dict[str, Any]:
    """Every part and precision against fp64 on the CPU, over several shapes."""
    exact = copy.deepcopy(engines.model).cpu().double()
    result: dict[str, Any] = {}
    for graph in GRAPHS:
        module = graph.module(exact).eval()
        for precision in engines.precisions if graph is not ALIGNMENT else ("fp32",):
            run, worst, cosines = engines.compiled(graph, precision), 0.0, []
            for seed, sizes in enumerate(graph.shapes):
                made = engines.inputs(graph, sizes, seed)
                doubles = [_wide(value.cpu()) for value in made.values()]
                with torch.inference_mode():
                    expected = module(*doubles)
                expected = expected[0] if isinstance(expected, tuple) else expected
                poisoned = torch.full_like(expected, float("nan"))
                poisoned.copy_(next(iter(run(made).values())))
                worst = max(worst, float((poisoned - expected).abs().max()))
                if graph is not ALIGNMENT:
                    present = expected.abs().amax(-1) > 0
                    cosine = torch.cosine_similarity(poisoned, expected, dim=-1)[present]
                    cosines.append(float(cosine.min()))
            result[f"{graph.name} {precision}"] = {
                "max_error": worst,
                **({"min_cosine": min(cosines)} if cosines else {}),
            }
    return result


def sweep(
    engines: Engines, clock: Clock, ceilings: dict[str, float], *, small: bool
) -> list[dict[str, Any]]:
    """Both encoders over batches and lengths: eager, compiled, and as CUDA graphs."""
    batches = (1, 4) if small else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    precision = "bf16" if "bf16" in engines.precisions else "fp32"
    peak, copied = ceilings[f"{precision}_operations_per_second"], ceilings["copy_bytes_per_second"]
    rows = []
    for graph in GRAPHS[:2]:
        lengths: tuple[int, ...] = (REGIONS,)
        if graph is TEXTUAL_ENCODER:
            lengths = (8, 16) if small else (8, 16, 32, 64)
        compiled = engines.compiled(graph, precision)
        ways = {"eager": engines.eager(graph, precision), "compiled": compiled}
        if clock.device.type == "cuda":
            ways["cuda graph"] = GraphedRun(compiled)
        module = graph.module(engines.model)
        width = 4 if precision == "fp32" else 2
        weights = width * sum(
            p.numel() for n, p in module.named_parameters() if "embeddings.word" not in n
        )
        floor = weights / copied  # the weights are read once; a copy counts reads and writes
        for length in lengths:
            operations = multiply_adds(engines.model.config, length, length)[
                0 if graph is TEXTUAL_ENCODER else 1
            ]
            for batch in batches:
                inputs = engines.inputs(graph, (batch, length))
                row: dict[str, Any] = {"part": graph.name, "batch": batch, "length": length}
                for way, run in ways.items():
                    if way == "cuda graph" and batch > 8:
                        continue
                    seconds = clock(lambda: run(inputs))  # noqa: B023
                    row[way] = {
                        "ms": round(1e3 * seconds, 3),
                        "share_of_peak": round(batch * operations / seconds / peak, 4),
                        "times_weight_floor": round(seconds / floor, 2),
                    }
                rows.append(row)
    return rows


def _wide(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _named(graph: Graph, module: Callable[..., Any]) -> Run:
    def run(inputs: Tensors) -> Tensors:
        with torch.inference_mode():
            outputs = module(*(inputs[name] for name in graph.inputs))
        outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
        return dict(zip(graph.outputs, outputs, strict=True))

    return run
