"""Graphs as ONNX files.

Every graph is run in ONNX Runtime on random valid inputs of several shapes when it is written, and
compared with the PyTorch module it came from.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from teran.errors import ExportError
from teran.model import TeranConfig, TeranModel
from teran_export.graphs import Graph, random_inputs, traced_example

OPSET = 18


def write_graph(
    graph: Graph,
    model: TeranModel,
    directory: Path,
    *,
    tolerance: float | None = None,
    opset: int = OPSET,
) -> float:
    """Write one graph and check it, by default against the graph's own tolerance.

    A graph in bf16, which ONNX Runtime does not run on CPUs, is not checked.

    Returns:
        The largest absolute difference from PyTorch over all checked shapes.

    Raises:
        ExportError: it is above the tolerance; the file is removed.
    """
    module = graph.module(model).eval()
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


def check_graph(graph: Graph, module: nn.Module, config: TeranConfig, path: Path) -> float:
    """Largest absolute difference between the written graph and PyTorch, over several shapes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    for seed, sizes in enumerate(graph.shapes):
        inputs = random_inputs(graph, config, sizes, seed)
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(value) for value in inputs.values()))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(session.run(None, inputs), expected, strict=True):
            difference = np.abs(ours - theirs.numpy())
            worst = max(worst, float(difference.max()) if np.isfinite(ours).all() else np.inf)
    return worst
