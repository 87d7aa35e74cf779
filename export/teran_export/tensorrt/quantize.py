"""Puts int8 or fp8 into a graph as Q/DQ pairs around linear layers, int8 around convolutions too.

What TensorRT wants of them: symmetric scales, for int8 weights one of each output channel, biases
and the results of matmuls left as they are. Scales bring the largest absolute value to the end of
the type's range. Layer norms, softmax and attention's own products are not quantised.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from teran.errors import ExportError
from teran_export.graphs import Arrays

_LEAST = float(np.finfo(np.float16).tiny)
"""Of a scale in half precision."""


@dataclass(frozen=True)
class _Format:
    """A type of few bits."""

    kind: int
    largest: float
    """Value it can hold."""
    per_channel: bool
    """Whether each output channel of a layer has a scale of its own."""
    layers: tuple[str, ...]
    """Operators that are quantised."""


_FORMATS = {
    "int8": _Format(TensorProto.INT8, 127.0, per_channel=True, layers=("MatMul", "Conv")),
    "fp8": _Format(TensorProto.FLOAT8E4M3FN, 448.0, per_channel=False, layers=("MatMul",)),
}


def quantize(
    source: Path,
    target: Path,
    precision: str,
    samples: Iterable[Arrays],
    kept_in_float: Sequence[str] = (),
) -> None:
    """Write `target`: `source` with its linear layers quantised by what the samples show.

    Args:
        source: an ONNX file.
        target: the file to write.
        precision: "int8" or "fp8".
        samples: inputs to calibrate on, of any shapes.
        kept_in_float: parts of node names that must not be quantised.

    Raises:
        ExportError: the graph can't be quantised.
    """
    try:
        model = onnx.load(source)
        writer = _Writer(model, _FORMATS[precision], kept_in_float)
        writer.write(_largest(model, writer.activations, samples))
        onnx.save(model, target)
    except Exception as error:  # whatever ONNX Runtime raises
        raise ExportError(f"{source.name} can't be quantised to {precision}: {error}") from error


class _Writer:
    """Puts the pairs into one graph."""

    def __init__(self, model: ModelProto, form: _Format, kept_in_float: Sequence[str]) -> None:
        self._graph, self._form = model.graph, form
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._linear = {
            node.name
            for node in model.graph.node
            if node.op_type in form.layers
            and node.input[1] in self._weights
            and not any(part in node.name for part in kept_in_float)
        }
        self._done: dict[str, str] = {}
        """What has a pair: what comes out of it."""

    @property
    def activations(self) -> list[str]:
        """Values that are multiplied by weights."""
        nodes = (node for node in self._graph.node if node.name in self._linear)
        return sorted({node.input[0] for node in nodes})

    def write(self, largest: dict[str, float]) -> None:
        """Put a pair before each use.

        Args:
            largest: the largest absolute value of each of the activations.
        """
        nodes: list[NodeProto] = []
        for node in self._graph.node:
            if node.name in self._linear:
                activation, weight, *bias = node.input
                values = numpy_helper.to_array(self._weights[weight])
                nodes += self._pair(
                    activation, np.array(largest[activation], np.float32), values.dtype
                )
                channels = 1 if node.op_type == "MatMul" else 0
                others = tuple(axis for axis in range(values.ndim) if axis != channels)
                across = others if self._form.per_channel else None
                peaks = np.abs(values.astype(np.float32)).max(axis=across)
                nodes += self._pair(weight, peaks, values.dtype, channels)
                node.input[:] = [self._done[activation], self._done[weight], *bias]
            nodes.append(node)
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _pair(
        self,
        name: str,
        largest: npt.NDArray[np.float32],
        dtype: np.dtype[np.generic],
        channels: int = 0,
    ) -> Iterator[NodeProto]:
        """The two nodes for a value, unless it has them; on the axis of what has its own scale."""
        if name in self._done:
            return
        scale = np.maximum(largest / self._form.largest, _LEAST).astype(dtype)
        zero = helper.make_tensor(
            f"{name}.zero", self._form.kind, scale.shape, np.zeros(scale.size).tolist()
        )
        self._graph.initializer.extend([numpy_helper.from_array(scale, f"{name}.scale"), zero])
        inner, self._done[name] = f"{name}.quantized", f"{name}.dequantized"
        parameters = [f"{name}.scale", zero.name]
        axis = {"axis": channels} if scale.ndim else {}
        for kind, given, made in (
            ("QuantizeLinear", name, inner),
            ("DequantizeLinear", inner, self._done[name]),
        ):
            yield helper.make_node(kind, [given, *parameters], [made], f"{name}/{kind}", **axis)


def _largest(
    model: ModelProto, names: Sequence[str], samples: Iterable[Arrays]
) -> dict[str, float]:
    """The largest absolute value that each of some values takes on the samples.

    Raises:
        ValueError: there is no sample.
    """
    if not names:
        return {}
    probe = ModelProto()
    probe.CopyFrom(model)
    outputs = []
    for name in names:
        chain = [name, *(f"{name}.{step}" for step in ("float", "size", "largest"))]
        probe.graph.node.extend(
            [
                helper.make_node("Cast", chain[0:1], chain[1:2], to=TensorProto.FLOAT),
                helper.make_node("Abs", chain[1:2], chain[2:3]),
                helper.make_node("ReduceMax", chain[2:3], chain[3:4], keepdims=0),
            ]
        )
        outputs.append(helper.make_tensor_value_info(chain[3], TensorProto.FLOAT, []))
    del probe.graph.output[:]
    probe.graph.output.extend(outputs)
    session = onnxruntime.InferenceSession(
        probe.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    seen = [session.run(None, dict(sample)) for sample in samples]
    if not seen:
        raise ValueError("there are no samples to calibrate on")
    return dict(zip(names, np.max(seen, axis=0).tolist(), strict=True))
