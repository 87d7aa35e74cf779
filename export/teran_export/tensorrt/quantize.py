"""Puts int8 or fp8 into a graph as Q/DQ pairs around linear layers, by ONNX Runtime's quantizer.

What TensorRT wants of them: symmetric scales, weights for each output channel, biases and the
results of matmuls left as they are. Layer norms, softmax and attention's own products are not
quantised.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from teran.errors import ExportError
from teran_export.graphs import Arrays

_TYPES = {"int8": QuantType.QInt8, "fp8": QuantType.QFLOAT8E4M3FN}
_METHODS = {"int8": CalibrationMethod.MinMax, "fp8": CalibrationMethod.Distribution}


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Iterable[Arrays]) -> None:
        self._samples: Iterator[Arrays] = iter(samples)

    def get_next(self) -> Arrays | None:
        return next(self._samples, None)


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
        samples: inputs to calibrate on.
        kept_in_float: parts of node names that must not be quantised.

    Raises:
        ExportError: the graph can't be quantised.
    """
    nodes = [node.name for node in onnx.load(source, load_external_data=False).graph.node]
    kept = [name for name in nodes if any(part in name for part in kept_in_float)]
    logging.getLogger().setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                source,
                target,
                _Samples(samples),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul"],
                per_channel=precision == "int8",
                activation_type=_TYPES[precision],
                weight_type=_TYPES[precision],
                nodes_to_exclude=kept,
                calibrate_method=_METHODS[precision],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "AddQDQPairToWeight": True,
                    "MatMulConstBOnly": True,
                    "OpTypesToExcludeOutputQuantization": ["MatMul"],
                },
            )
    except Exception as error:  # whatever the quantizer raises
        raise ExportError(f"{source.name} can't be quantised to {precision}: {error}") from error
