"""Judges an engine by what users would notice: its embeddings' direction, and recall."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch

from teran.errors import ExportError
from teran.evaluation.retrieval import Recall, image_ranks
from teran.model import TeranModel
from teran.model.alignment import align
from teran_export.calibration import CalibrationData
from teran_export.engines.base import Run
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, Arrays, Graph

Floats = npt.NDArray[np.float32]
_ENCODERS = (VISUAL_ENCODER, TEXTUAL_ENCODER)

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
    milliseconds: float | None
    """Median time of one batch of calibration data in this process; None of what stands in for an
    engine that can't be run here."""
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
        """Of a batch for each encoder; 0 where that was not measured."""
        return sum(check.milliseconds or 0.0 for check in self.encoders.values())

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

    def summary(self) -> str:
        """The figures, in a few words."""
        cosine = min(encoder.mean_cosine for encoder in self.encoders.values())
        recall = "" if self.recall_drop is None else f", recall changes by {self.recall_drop} pt"
        time = f", {self.milliseconds:.1f} ms a batch" if self.milliseconds else ""
        return f"cosine {cosine:.5f}{recall}{time}"


@dataclass(frozen=True, eq=False)
class Answers:
    """Inputs, and what PyTorch makes of them in fp32."""

    data: CalibrationData
    """In the precision in which features are sent: what that loses counts as well."""
    embeddings: Mapping[str, Floats]
    """Per encoder, from the features as they are: (N, R, E) and (M, W, E)."""
    pooling: str

    @classmethod
    def of(
        cls, model: TeranModel, data: CalibrationData, feature_precision: str = "fp32"
    ) -> "Answers":
        """Ask PyTorch."""
        modules = {VISUAL_ENCODER: model.visual_encoder, TEXTUAL_ENCODER: model.textual_encoder}

        def reference(graph: Graph) -> Run:
            def run(inputs: Arrays) -> Arrays:
                tensors = [torch.from_numpy(inputs[name]) for name in graph.inputs]
                return {graph.outputs[0]: modules[graph](*tensors).numpy()}

            return run

        with torch.inference_mode():
            embeddings = {graph.name: _run(data, graph, reference(graph))[0] for graph in modules}
        return cls(data.with_features(feature_precision), embeddings, model.config.pooling.value)

    def save(self, path: Path) -> None:
        """Write them into a file, for a host without the model."""
        with path.open("wb") as file:
            np.savez(
                file,
                pooling=self.pooling,
                **{f"embeddings.{name}": value for name, value in self.embeddings.items()},
                **self.data.to_arrays(),
            )

    @classmethod
    def load(cls, path: Path) -> "Answers":
        """Read what `save` wrote.

        Raises:
            ExportError: the file is missing or damaged.
        """
        try:
            with np.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files}
            embeddings = {one.name: arrays[f"embeddings.{one.name}"] for one in _ENCODERS}
            return cls(CalibrationData.of_arrays(arrays), embeddings, str(arrays["pooling"]))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise ExportError(f"{path} can't be read: {error}; export again") from error


class Gate:
    """Compares engines with what PyTorch answers."""

    def __init__(self, answers: Answers, *, timed: bool = True) -> None:
        """Take the answers to compare with, and whether times mean anything."""
        self._data, self._expected = answers.data, answers.embeddings
        self._pooling, self._timed = answers.pooling, timed
        self._recall = self._recall_of(self._expected)

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
        for graph in _ENCODERS:
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
        result, milliseconds = _run(self._data, graph, run)
        cosine = self._cosine(graph, result)
        mean, least = round(float(cosine.mean()), 6), round(float(cosine.min()), 6)
        error = float(np.abs(result - self._expected[graph.name]).max())
        timed = milliseconds if self._timed else None
        return EncoderCheck(mean, least, round(error, 8), timed), result

    def _cosine(self, graph: Graph, result: Floats) -> Floats:
        expected = self._expected[graph.name]
        rows = np.abs(expected).max(axis=-1) > 0
        ours, theirs = result[rows].astype(np.float64), expected[rows].astype(np.float64)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine: Floats = np.nan_to_num((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-12))
        return cosine

    def _recall_of(self, embeddings: Mapping[str, Floats]) -> Recall | None:
        if self._data.image_of_caption is None:
            return None
        regions = torch.from_numpy(embeddings[VISUAL_ENCODER.name])
        words = torch.from_numpy(embeddings[TEXTUAL_ENCODER.name])
        scores = torch.cat(
            [align(regions, block, pooling=self._pooling)[0] for block in words.split(64)], dim=1
        ).numpy()
        return Recall.of(image_ranks(scores, self._data.image_of_caption))


def _run(data: CalibrationData, graph: Graph, run: Run) -> tuple[Floats, float]:
    """One encoder's embeddings of all data, and the median milliseconds of a batch."""
    results, times = [], []
    for batch in data.batches(graph):
        start = perf_counter()
        results.append(run(batch)[graph.outputs[0]].copy())
        times.append(perf_counter() - start)
    # The first run of a shape compiles.
    return np.concatenate(results), round(1e3 * median(times[1:] or times), 3)
