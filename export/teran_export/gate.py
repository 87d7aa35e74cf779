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
from teran.evaluation.retrieval import Recall, caption_ranks, image_ranks
from teran.evaluation.scoring import score_all
from teran.model import Pooling, TeranModel
from teran_export.calibration import CalibrationData
from teran_export.engines.base import Run
from teran_export.graphs import TEXTUAL_ENCODER, VISUAL_ENCODER, Arrays, Graph
from teran_export.options import MAX_LOSS

Floats = npt.NDArray[np.float32]
_ENCODERS = (VISUAL_ENCODER, TEXTUAL_ENCODER)

MIN_MEAN_COSINE = 0.99
MIN_COSINE = 0.95
_FEWEST_IMAGES = 200
"""For which recall of sentences is judged: of fewer, one image more or less decides."""


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
    recall_loss: dict[str, float] | None
    """Points by which each recall of images, and of sentences where there are enough images, is
    below PyTorch's; None where it is not known which caption belongs to which image."""
    max_loss: float = MAX_LOSS
    """More of it is refused."""

    @property
    def worst_loss(self) -> float | None:
        """The largest of them."""
        return max(self.recall_loss.values()) if self.recall_loss else None

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
        for name, loss in (self.recall_loss or {}).items():
            if loss > self.max_loss:
                return f"{name} is {loss:.2f} points below fp32's, more than {self.max_loss:g}"
        return None

    def summary(self) -> str:
        """The figures, in a few words."""
        cosine = min(encoder.mean_cosine for encoder in self.encoders.values())
        loss = self.worst_loss
        recall = "" if loss is None else f", recall {0 - loss:+.2f} pt at worst"
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

    def __init__(self, answers: Answers, *, timed: bool = True, max_loss: float = MAX_LOSS) -> None:
        """Prepare to compare.

        Args:
            answers: to compare with.
            timed: whether times mean anything.
            max_loss: points of recall that may be lost.
        """
        self._data, self._expected, self._max_loss = answers.data, answers.embeddings, max_loss
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
        recall, loss = self._recall_of(embeddings), None
        if recall and self._recall:
            loss = {name: round(self._recall[name] - value, 3) for name, value in recall.items()}
        return PrecisionCheck(checks, loss, self._max_loss)

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

    def _recall_of(self, embeddings: Mapping[str, Floats]) -> dict[str, float] | None:
        owner = self._data.image_of_caption
        if owner is None:
            return None
        regions, words = (
            [rows[np.abs(rows).max(axis=1) > 0] for rows in embeddings[graph.name]]
            for graph in _ENCODERS
        )
        scores = score_all(regions, words, Pooling(self._pooling))
        recalls = {"image": Recall.of(image_ranks(scores, owner))}
        if len(regions) >= _FEWEST_IMAGES:
            recalls["sentence"] = Recall.of(caption_ranks(scores, owner))
        return {
            f"{kind}_r{k}": getattr(recall, f"r{k}")
            for kind, recall in recalls.items()
            for k in (1, 5, 10)
        }


def _run(data: CalibrationData, graph: Graph, run: Run) -> tuple[Floats, float]:
    """One encoder's embeddings of all data, and the median milliseconds of a batch."""
    count, longest = next(iter(data.inputs(graph).values())).shape[:2]
    results: Floats | None = None
    times, done = [], 0
    for batch in data.batches(graph):
        start = perf_counter()
        found = run(batch)[graph.outputs[0]]
        times.append(perf_counter() - start)
        if results is None:
            results = np.zeros((count, longest, found.shape[2]), found.dtype)
        results[done : done + len(found), : found.shape[1]] = found
        done += len(found)
    assert results is not None
    # The first run of a shape compiles.
    return results, round(1e3 * median(times[1:] or times), 3)
