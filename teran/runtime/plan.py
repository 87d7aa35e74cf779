"""Runs a TensorRT plan on torch's CUDA tensors: for the check after a build, and the stand-in.

`trt` is TensorRT's module, passed in so that this can be tested without it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teran.errors import ServingError

_TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


class Plan:
    """A loaded plan with one execution context for each of its profiles."""

    def __init__(self, trt: Any, path: Path, logger: Any) -> None:
        """Load a plan.

        Raises:
            ServingError: it was built for another GPU or version, or is damaged.
        """
        self._runtime = trt.Runtime(logger)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ServingError(
                f"TensorRT can't load {path}, built for another GPU or version; export it again"
            )
        self._trt, self._engine = trt, engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == inputs]
        self.outputs = [name for name in names if name not in self.inputs]
        self._types = {name: _TYPES[engine.get_tensor_dtype(name).name] for name in names}
        self._stream = torch.cuda.Stream()
        self._contexts = []
        for profile in range(engine.num_optimization_profiles):
            context = self._make_context(profile)
            context.set_optimization_profile_async(profile, self._stream.cuda_stream)
            self._contexts.append(context)
        self._stream.synchronize()

    def _make_context(self, profile: int) -> Any:  # noqa: ARG002
        """What one profile runs in."""
        return self._engine.create_execution_context()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on CUDA tensors; the outputs are complete when the current stream reaches them.

        Raises:
            ServingError: no profile takes these shapes, or the run failed.
        """
        shapes = {name: tuple(inputs[name].shape) for name in self.inputs}
        context = self._contexts[self._profile(shapes)]
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        held = {n: inputs[n].to(self._types[n]).contiguous() for n in self.inputs}
        for name, tensor in held.items():
            context.set_input_shape(name, shapes[name])
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = {}
        for name in self.outputs:
            shape = tuple(context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=self._types[name], device="cuda")
            context.set_tensor_address(name, outputs[name].data_ptr())
        if not context.execute_async_v3(self._stream.cuda_stream):
            raise ServingError(f"TensorRT failed on inputs of shapes {shapes}")
        current.wait_stream(self._stream)
        for tensor in (*held.values(), *outputs.values()):
            tensor.record_stream(self._stream)
        return outputs

    def _profile(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """The first profile that takes the shapes."""
        for profile in range(self._engine.num_optimization_profiles):
            ranges = {name: self._engine.get_tensor_profile_shape(name, profile) for name in shapes}
            if all(_fits(shape, *ranges[name]) for name, shape in shapes.items()):
                return profile
        raise ServingError(f"no optimization profile takes inputs of shapes {dict(shapes)}")


def _fits(
    shape: Sequence[int], smallest: Sequence[int], _usual: Sequence[int], largest: Sequence[int]
) -> bool:
    return all(
        low <= size <= high for size, low, high in zip(shape, smallest, largest, strict=True)
    )
