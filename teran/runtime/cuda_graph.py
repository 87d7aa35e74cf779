"""Replays runs on a GPU as CUDA graphs: one launch instead of hundreds, for small batches.

Not run on a GPU yet. What can't be captured runs as it is.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
LARGEST_BATCH = 8
"""Beyond it, kernels take longer than their launches."""
_MOST_GRAPHS = 32
_WARM_UPS = 3
_log = logging.getLogger(__name__)


class GraphedRun:
    """Calls `run`, or replays what was captured of it for the same shapes."""

    def __init__(self, run: Callable[[Tensors], Tensors]) -> None:
        self._run = run
        self._graphs: dict[tuple[object, ...], _Captured | None] = {}

    def __call__(self, inputs: Tensors) -> Tensors:
        first = next(iter(inputs.values()))
        if not first.is_cuda or len(first) > LARGEST_BATCH:
            return self._run(inputs)
        key = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if key not in self._graphs:
            if len(self._graphs) >= _MOST_GRAPHS:
                return self._run(inputs)
            self._graphs[key] = self._capture(inputs)
        captured = self._graphs[key]
        return captured.replay(inputs) if captured else self._run(inputs)

    def _capture(self, inputs: Tensors) -> "_Captured | None":
        try:
            return _Captured(self._run, inputs)
        except RuntimeError as error:
            _log.warning("no CUDA graph for these shapes: %s", error)
            torch.cuda.synchronize()
            return None


class _Captured:
    def __init__(self, run: Callable[[Tensors], Tensors], inputs: Tensors) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                run(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = run(self._inputs)

    def replay(self, inputs: Tensors) -> Tensors:
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._graph.replay()
        return {name: value.clone() for name, value in self._outputs.items()}
