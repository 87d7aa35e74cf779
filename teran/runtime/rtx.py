"""Runs a plan of TensorRT-RTX, which compiles its kernels on the GPU where it runs.

What has been compiled is kept in a file, so that the next start finds it. Shapes that have no
kernel of their own yet run with one that takes all, until theirs is compiled beside.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from teran.runtime.plan import Plan

_MOST_SHAPES = 1024
"""That are remembered, to notice new ones."""


class RtxPlan(Plan):
    """A loaded plan, its cache and its CUDA graphs."""

    def __init__(
        self,
        trt: Any,
        path: Path,
        logger: Any,
        cache: Path | None = None,
        graph_profiles: Collection[int] = (),
    ) -> None:
        """Load a plan.

        Args:
            trt: the module `tensorrt_rtx_bindings`.
            path: the plan.
            logger: one of its loggers.
            cache: a file for compiled kernels, which need not be there.
            graph_profiles: profiles whose runs are captured into CUDA graphs, one for every shape:
                of small batches, which take less time than their launches.

        Raises:
            ServingError: it was built for other GPUs or another version, or is damaged.
        """
        self._file, self._graph_profiles = cache, graph_profiles
        self._cache: Any = None
        self._kept = b""
        self._seen: set[tuple[tuple[int, ...], ...]] = set()
        super().__init__(trt, path, logger)

    def _make_context(self, profile: int) -> Any:
        trt, config = self._trt, self._engine.create_runtime_config()
        strategies = trt.CudaGraphStrategy
        graphs = profile in self._graph_profiles
        config.cuda_graph_strategy = (
            strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
        )
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = kernels.LAZY
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._file is not None and self._file.is_file():
                # Refused, and left empty, where another GPU, driver or version wrote it.
                self._cache.deserialize(self._file.read_bytes())
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = super().run(inputs)
        shapes = tuple(tuple(inputs[name].shape) for name in self.inputs)
        if shapes not in self._seen and len(self._seen) < _MOST_SHAPES:
            self._seen.add(shapes)
            # After a power of two of shapes: the later ones come seldom.
            if len(self._seen) & (len(self._seen) - 1) == 0:
                self.keep()
        return outputs

    def keep(self) -> None:
        """Write what has been compiled so far, where the file can be written."""
        if self._file is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._kept:
            return
        made = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            made.write_bytes(data)
            made.replace(self._file)
            self._kept = data
        except OSError:  # as in a container, whose files can't be written: compiled again then
            self._file = None
