"""What an engine has to offer so that graphs can be built for it, checked and published."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from teran.detector import RegionDetector
from teran.model import TeranModel
from teran_export.detector_graphs import PROPOSAL_NETWORK, REGION_NETWORK
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, Arrays, Graph
from teran_export.options import BuildOptions, Limits

TIMING_CACHE = "timing.cache"


Run = Callable[[Arrays], Arrays]
"""A loaded engine: named inputs to named outputs."""


@dataclass(frozen=True, eq=False)
class Source:
    """What an engine is built from."""

    graph: Graph
    onnx: Path
    """The graph in fp32, checked."""
    model: TeranModel | RegionDetector
    """What it is a part of, for engines that start from PyTorch, or in another precision."""
    limits: Limits = field(default_factory=Limits)
    options: BuildOptions = field(default_factory=BuildOptions)
    kept_in_float: Sequence[str] = ()
    """Parts of layer names that must not be quantised."""
    report: Callable[[str], None] = lambda _: None
    """Told of every step of a long build."""

    @property
    def timing_cache(self) -> Path:
        """Where a builder keeps what it has measured; kept with what is published."""
        return self.onnx.with_name(TIMING_CACHE)

    @property
    def largest_batch(self) -> int:
        """The published batch limit; 0 for what is not batched."""
        limits = {
            VISUAL_ENCODER: self.limits.max_images,
            TEXTUAL_ENCODER: self.limits.max_captions,
            PROPOSAL_NETWORK: self.limits.max_photos,
            REGION_NETWORK: self.limits.max_photos,
        }
        return limits.get(self.graph, 0)


class Engine(Protocol):
    """One way of running a graph."""

    name: str
    backend: str
    """Triton's name for the backend that serves it."""
    starts_from_onnx: bool
    """Whether it is built from the ONNX graphs in fp32, rather than from PyTorch."""
    on_gpu: bool
    """Whether it runs on a GPU."""
    files: tuple[str, ...]
    """What `build` writes; the first is Triton's `default_model_filename`."""

    @property
    def runs_here(self) -> bool:
        """Whether what is built can be run on this host. If not, what it was built from is."""

    def precisions(self, options: BuildOptions = BuildOptions()) -> Sequence[str]:
        """The precisions it can be built in here, from the plainest to the most reduced.

        Raises:
            ExportError: it can't be built as the options say.
        """

    def build(
        self, source: Source, directory: Path, precision: str, samples: Iterable[Arrays]
    ) -> None:
        """Compile `source` into `directory`.

        Args:
            source: the graph, as ONNX and as PyTorch.
            directory: where the engine goes.
            precision: one of `precisions()`.
            samples: inputs to calibrate on.

        Raises:
            ExportError: it can't be compiled.
        """

    def load(self, graph: Graph, directory: Path, precision: str) -> Run:
        """Load what `build` wrote, to be checked in this process, and timed if it `runs_here`."""

    def configure(self, config: Any, source: Source, precision: str) -> None:
        """Add to a model's config what the backend wants of it."""

    def versions(self) -> dict[str, str]:
        """The libraries whose version decides what an engine is, for the manifest."""
