"""Graphs as ONNX files.

Every graph is run in ONNX Runtime on random valid inputs of several shapes when it is written, and
compared with the PyTorch module it came from.
"""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxscript import opset18
from torch import nn

from teran.detector.config import POOLED, STRIDE
from teran.errors import ExportError
from teran_export import detector_graphs as _detector_graphs  # noqa: F401, which defines operators
from teran_export.graphs import Graph, random_inputs, traced_example

OPSET = 18


def _max_roi_pool(features: Any, boxes: Any) -> Any:
    shape = (POOLED, POOLED)
    return opset18.MaxRoiPool(features, boxes, pooled_shape=shape, spatial_scale=1 / STRIDE)


_OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.teran.roi_pool.default: _max_roi_pool
}
"""Ours, and what they are in ONNX."""


def write_graph(
    graph: Graph,
    model: Any,
    directory: Path,
    precision: str = "fp32",
    *,
    tolerance: float | None = None,
    opset: int = OPSET,
) -> float:
    """Write one graph and check it, by default against the graph's own tolerance.

    A graph in bf16, which ONNX Runtime does not run on CPUs, is not checked.

    Returns:
        The largest difference from PyTorch; see `check_graph`.

    Raises:
        ExportError: it is above the tolerance; the file is removed.
    """
    module = graph.module_in(model, precision)
    path = graph.path(directory)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        example, dynamic = traced_example(graph, model, torch.device("cpu"))
        program = torch.onnx.export(
            module,
            example,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=dynamic,
            custom_translation_table=_OPERATORS,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_nodes(proto)
    onnx.save(proto, path)
    if any(parameter.dtype is torch.bfloat16 for parameter in module.parameters()):
        return float("nan")
    error = check_graph(graph, module, model.config, path)
    tolerance = graph.tolerance if tolerance is None else tolerance
    if not error <= tolerance:
        path.unlink()
        raise ExportError(
            f"the {graph.name} graph differs from PyTorch by {error:.2e}, more than {tolerance:.0e}"
        )
    return error


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Name every node after the module it came from, as engines report layers by that name."""
    for index, node in enumerate(proto.graph.node):
        scopes = {p.key: p.value for p in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        module = parts[-2] if len(parts) > 1 else ""
        node.name = f"{module or 'graph'}/{node.op_type}_{index}"
        del node.metadata_props[:]


def check_graph(graph: Graph, module: nn.Module, config: Any, path: Path) -> float:
    """Largest difference between the written graph and PyTorch, over several shapes.

    It is relative to an output's largest value, where that is above 1.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, sizes in enumerate(graph.shapes):
        inputs = random_inputs(graph, config, sizes, seed)
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(value) for value in inputs.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(session.run(None, inputs), expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            difference = float(np.abs(ours - theirs.numpy()).max()) / scale
            worst = max(worst, difference if np.isfinite(ours).all() else np.inf)
    return worst
