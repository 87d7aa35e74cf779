"""Judges an engine by what users would notice: its embeddings' direction, and recall."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from teran.evaluation.retrieval import Recall, image_ranks
from teran.model import TeranModel
from teran_export.calibration import CalibrationData
from teran_export.engines import Engine
from teran_export.engines.base import Run
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, Arrays, Graph

Floats = npt.NDArray[np.float32]

MIN_MEAN_COSINE = 0.99
MIN_COSINE = 0.95
MAX_RECALL_DROP = 0.5
"""Percentage points of image R@1 and R@10 an engine may differ by from PyTorch in fp32."""


@dataclass(frozen=True)
class EncoderCheck:
    """One encoder's embeddings against PyTorch's, over all present rows, and its speed."""

    mean_cosine: float
    min_cosine: float
    max_error: float
    """Largest absolute difference of a value."""
    milliseconds: float
    """Median time of one batch of calibration data in this process."""
    kept_in_float: tuple[str, ...] = ()
    """Groups of layers that were not quantised, because their effect was too large."""

    def passes(self) -> bool:
        """Whether the embeddings are close enough to PyTorch's."""
        return self.mean_cosine >= MIN_MEAN_COSINE and self.min_cosine >= MIN_COSINE


@dataclass(frozen=True)
class PrecisionCheck:
    """What a precision costs and what it keeps."""

    encoders: dict[str, EncoderCheck]
    recall_drop: float | None
    """Largest change of image R@1 and R@10 in points; None where no recall is defined."""

    @property
    def milliseconds(self) -> float:
        return sum(check.milliseconds for check in self.encoders.values())

    def failure(self) -> str | None:
        """Why the precision must not be served, or None."""
        for name, check in self.encoders.items():
            if not check.passes():
                return (
                    f"{name}: cosine {check.mean_cosine:.4f} on average, {check.min_cosine:.4f} at "
                    f"worst; at least {MIN_MEAN_COSINE} and {MIN_COSINE} are needed"
                )
        if self.recall_drop is not None and self.recall_drop > MAX_RECALL_DROP:
            return f"recall changes by {self.recall_drop:.2f} points, more than {MAX_RECALL_DROP}"
        return None


class Gate:
    """Holds PyTorch's answers on the calibration data, and compares engines with them."""

    def __init__(
        self, model: TeranModel, data: CalibrationData, feature_precision: str = "fp32"
    ) -> None:
        """Compute PyTorch's answers, in fp32 and from the features as they are.

        Engines get them in `feature_precision`, so what that loses counts as well.
        """
        self._model, self._data = model, data
        modules = {VISUAL_ENCODER: model.visual_encoder, TEXTUAL_ENCODER: model.textual_encoder}

        def reference(graph: Graph) -> Run:
            def run(inputs: Arrays) -> Arrays:
                tensors = [torch.from_numpy(inputs[name]) for name in graph.inputs]
                return {graph.outputs[0]: modules[graph](*tensors).numpy()}

            return run

        with torch.inference_mode():
            self._expected = {
                graph.name: self._embeddings(graph, reference(graph))[0] for graph in modules
            }
        self._recall = self._recall_of(self._expected)
        self._data = data.with_features(feature_precision)

    def check(
        self,
        load: Callable[[Graph], Run],
        kept_in_float: Mapping[str, tuple[str, ...]] | None = None,
    ) -> PrecisionCheck:
        """Run both encoders of one precision on all data.

        Args:
            load: gives the loaded engine of a graph; one is held at a time.
            kept_in_float: per graph the groups of layers that were not quantised.
        """
        checks, embeddings = {}, {}
        for graph in (VISUAL_ENCODER, TEXTUAL_ENCODER):
            check, embeddings[graph.name] = self.check_encoder(graph, load(graph))
            kept = (kept_in_float or {}).get(graph.name, ())
            checks[graph.name] = replace(check, kept_in_float=kept)
        recall = self._recall_of(embeddings)
        drop = None
        if recall and self._recall:
            pairs = ((recall.r1, self._recall.r1), (recall.r10, self._recall.r10))
            drop = round(max(abs(ours - theirs) for ours, theirs in pairs), 3)
        return PrecisionCheck(checks, drop)

    def check_encoder(self, graph: Graph, run: Run) -> tuple[EncoderCheck, Floats]:
        """Run one encoder on all data: how close it comes, and its embeddings."""
        result, milliseconds = self._embeddings(graph, run)
        cosine = self._cosine(graph, result)
        mean, least = round(float(cosine.mean()), 6), round(float(cosine.min()), 6)
        error = float(np.abs(result - self._expected[graph.name]).max())
        return EncoderCheck(mean, least, round(error, 8), milliseconds), result

    def _embeddings(self, graph: Graph, run: Run) -> tuple[Floats, float]:
        results, times = [], []
        for batch in self._data.batches(graph):
            start = perf_counter()
            results.append(run(batch)[graph.outputs[0]].copy())
            times.append(perf_counter() - start)
        # The first run of a shape compiles.
        return np.concatenate(results), round(1e3 * median(times[1:] or times), 3)

    def _cosine(self, graph: Graph, result: Floats) -> Floats:
        expected = self._expected[graph.name]
        rows = np.abs(expected).max(axis=-1) > 0
        ours, theirs = result[rows].astype(np.float64), expected[rows].astype(np.float64)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine: Floats = np.nan_to_num((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12))
        return cosine

    def _recall_of(self, embeddings: dict[str, Floats]) -> Recall | None:
        if self._data.image_of_caption is None:
            return None
        regions = torch.from_numpy(embeddings[VISUAL_ENCODER.name])
        words = torch.from_numpy(embeddings[TEXTUAL_ENCODER.name])
        scores = torch.cat(
            [self._model.align(regions, block) for block in words.split(64)], dim=1
        ).numpy()
        return Recall.of(image_ranks(scores, self._data.image_of_caption))


def choose(engine: Engine, checks: dict[str, PrecisionCheck]) -> str | None:
    """The fastest precision that passes, or None where none does."""
    passing = [p for p in engine.precisions() if p in checks and not checks[p].failure()]
    return min(passing, key=lambda p: checks[p].milliseconds, default=None)
