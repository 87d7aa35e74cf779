"""What an engine has to offer so that graphs can be built for it, checked and published."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from teran.model import TeranModel
from teran_export.graphs import Arrays, Graph

Run = Callable[[Arrays], Arrays]
"""A loaded engine: named inputs to named outputs."""


@dataclass(frozen=True, eq=False)
class Source:
    """What an engine is built from."""

    graph: Graph
    onnx: Path
    """The graph in fp32, checked."""
    model: TeranModel
    """The model it came from, for engines that start from PyTorch, or in another precision."""


class Engine(Protocol):
    """One way of running a graph."""

    name: str
    backend: str
    """Triton's name for the backend that serves it."""
    platform: str
    """Triton's name for the kind of model, where the backend knows several; else empty."""
    on_gpu: bool
    """Whether it runs on a GPU."""
    files: tuple[str, ...]
    """What `build` writes; the first is Triton's `default_model_filename`."""

    def precisions(self) -> Sequence[str]:
        """The precisions this host can run, from the plainest to the most reduced."""

    def build(
        self,
        source: Source,
        directory: Path,
        precision: str,
        samples: Iterable[Arrays],
        kept_in_float: Sequence[str] = (),
    ) -> None:
        """Compile `source` into `directory`.

        Args:
            source: the graph, as ONNX and as PyTorch.
            directory: where the engine goes.
            precision: one of `precisions()`.
            samples: inputs to calibrate on.
            kept_in_float: parts of layer names that must not be quantised.

        Raises:
            ExportError: it can't be compiled.
        """

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:
        """Load what `build` wrote, to be checked and timed in this process."""

    def parameters(self, precision: str) -> dict[str, str]:
        """The backend's own parameters for a model's config."""

    def versions(self) -> dict[str, str]:
        """The libraries whose version decides what an engine is, for the manifest."""
