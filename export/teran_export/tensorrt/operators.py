"""Whether TensorRT can take a graph, told without TensorRT.

The parser's operators and types are facts from its own table, kept in `operators.json` with their
version. Beyond them: every shape must follow from the inputs' shapes, and every operator's inputs
must agree in type by themselves, as networks are strongly typed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from teran.errors import ExportError

_TYPES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.FLOAT8E4M3FN: "FP8",
    TensorProto.INT8: "INT8",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.UINT8: "UINT8",
    TensorProto.BOOL: "BOOL",
}


@dataclass(frozen=True)
class Support:
    """What a version of TensorRT's ONNX parser takes."""

    tensorrt: str
    opsets: tuple[int, int]
    operators: Mapping[str, frozenset[str]]
    """Types by operator."""
    data_dependent: frozenset[str]
    """Operators whose output's shape depends on values."""


@cache
def support() -> Support:
    """The table that ships with this package."""
    data = json.loads(Path(__file__).with_name("operators.json").read_text(encoding="utf-8"))
    return Support(
        data["tensorrt"],
        (data["opsets"][0], data["opsets"][1]),
        {name: frozenset(types) for name, types in data["operators"].items()},
        frozenset(data["data_dependent"]),
    )


def check_graph(model: onnx.ModelProto, name: str) -> None:
    """Check that TensorRT can take a graph.

    Raises:
        ExportError: it can't; the message names every reason.
    """
    problems = sorted(set(_problems(model)))
    if problems:
        raise ExportError(
            f"TensorRT (parser of {support().tensorrt}) can't take the {name} graph: "
            + "; ".join(problems)
        )


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    known = support()
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if not known.opsets[0] <= opset <= known.opsets[1]:
        yield f"opset {opset} is outside {known.opsets[0]} to {known.opsets[1]}"
    for other in model.opset_import:
        if other.domain not in ("", "ai.onnx"):
            yield f"operators of domain {other.domain!r} are used"
    try:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        yield f"types or shapes contradict each other: {error}"
        return
    types = _types(inferred)
    for node in inferred.graph.node:
        if node.op_type in known.data_dependent:
            yield f"{node.op_type}: its output's shape depends on values"
        elif node.op_type not in known.operators:
            yield f"{node.op_type} is not supported"
        for output in filter(None, node.output):
            kind = types.get(output)
            if kind is None:
                yield f"{node.name}: type or rank of {output} can't be inferred"
            elif node.op_type in known.operators and not _allowed(node, kind, types):
                yield f"{node.op_type} is not supported in {kind}"


def _allowed(node: onnx.NodeProto, output: str, types: Mapping[str, str]) -> bool:
    """Whether an operator may have the type of its first input, or of its output without one."""
    allowed = support().operators[node.op_type]
    first = types.get(node.input[0]) if node.input else None
    if node.op_type in ("Shape", "Size"):
        return True
    return (first or output) in allowed


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """The type of every value whose type and rank are known."""
    graph = model.graph
    found = {tensor.name: _TYPES.get(tensor.data_type, "unknown") for tensor in graph.initializer}
    values: list[Any] = [*graph.value_info, *graph.input, *graph.output]
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type and tensor.HasField("shape"):
            found[value.name] = _TYPES.get(tensor.elem_type, "unknown")
    return found
