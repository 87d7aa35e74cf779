"""Judges a detector's engines: by the features of regions, and by which regions are chosen.

Without photos there are blurred noise and random boxes, which tell how exact an engine is, but not
what it finds.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from teran.contract import PHOTO_SUFFIXES
from teran.detector import DetectorConfig, RegionDetector
from teran.detector.boxes import Floats, overlaps
from teran.detector.decode import decode
from teran.detector.photo import padded, prepared, scale_of
from teran.detector.proposals import propose
from teran.detector.regions import choose
from teran.errors import CheckpointError, ExportError, TeranInputError
from teran_export.detector_graphs import (
    PORTABLE_REGION_NETWORK,
    PROPOSAL_NETWORK,
    REGION_NETWORK,
    SIDE_STEP,
)
from teran_export.engines.base import Run
from teran_export.gate import MIN_COSINE, MIN_MEAN_COSINE
from teran_export.graphs import Arrays, Graph, random_inputs

MIN_BOX_RECALL = 0.9
MATCHED = 0.9
"""Intersection over union of boxes that are the same."""
_SYNTHETIC = 4
_FEW = 24
"""Proposals of a sample: enough to tell how exact an engine is."""


@dataclass(frozen=True)
class DetectorCheck:
    """What a precision costs and what it keeps."""

    map_cosine: float
    """Of the feature map's cells with PyTorch's, on average."""
    mean_cosine: float
    """Of regions' features, from the same feature map."""
    min_cosine: float
    box_recall: float | None
    """Of the regions that PyTorch chooses, those that are chosen; None without photos."""
    milliseconds: float | None
    """Median of a sample in both networks; None of what stands in for an engine."""

    def failure(self) -> str | None:
        """Why the precision must not be served, or None."""
        if min(self.map_cosine, self.mean_cosine) < MIN_MEAN_COSINE or self.min_cosine < MIN_COSINE:
            return (
                f"cosines: {self.map_cosine:.4f} of the map, {self.mean_cosine:.4f} of features, "
                f"{self.min_cosine:.4f} at worst; {MIN_MEAN_COSINE} on average and {MIN_COSINE} "
                "are needed"
            )
        if self.box_recall is not None and self.box_recall < MIN_BOX_RECALL:
            return f"it finds {self.box_recall:.1%} of the regions; {MIN_BOX_RECALL:.0%} are needed"
        return None

    def summary(self) -> str:
        """The figures, in a few words."""
        recall = "" if self.box_recall is None else f", {self.box_recall:.1%} of the regions"
        time = f", {self.milliseconds:.0f} ms a photo" if self.milliseconds else ""
        return f"cosine {self.mean_cosine:.5f}{recall}{time}"


@dataclass(frozen=True, eq=False)
class Sample:
    """One photo on its way through the detector, by PyTorch."""

    photo: Arrays
    """What the first network takes."""
    size: tuple[int, int]
    """Of the photo, height and width."""
    res4: Floats
    proposals: Floats
    """(1, P, 4)"""
    features: Floats
    """(1, P, F)"""
    classes: Floats

    @staticmethod
    def names() -> tuple[str, ...]:
        """What `to_arrays` gives."""
        parts = ("size", "res4", "proposals", "features", "classes")
        return (*PROPOSAL_NETWORK.inputs, *parts)

    def to_arrays(self) -> Arrays:
        """Everything, by name."""
        values = (np.array(self.size), self.res4, self.proposals, self.features, self.classes)
        return dict(zip(self.names(), (*self.photo.values(), *values), strict=True))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any]) -> "Sample":
        """The sample that `to_arrays` gave."""
        photo = {name: arrays[name] for name in PROPOSAL_NETWORK.inputs}
        height, width = arrays["size"].tolist()
        rest = (arrays[name] for name in ("res4", "proposals", "features", "classes"))
        return cls(photo, (height, width), *rest)

    def inputs(self, graph: Graph) -> Arrays:
        """Of one network."""
        if graph == PROPOSAL_NETWORK:
            return self.photo
        return {"res4": self.res4, "proposals": self.proposals}


class DetectorGate:
    """Compares engines with what PyTorch answers."""

    def __init__(
        self,
        config: DetectorConfig,
        anchors: Floats,
        samples: Sequence[Sample],
        *,
        has_photos: bool,
        timed: bool = True,
    ) -> None:
        """Take what PyTorch has answered, and whether times mean anything."""
        self._config, self._anchors, self.samples = config, anchors, samples
        self._has_photos, self._timed = has_photos, timed

    @classmethod
    def of(
        cls,
        detector: RegionDetector,
        photos: Path | None,
        *,
        timed: bool = True,
        report: Callable[[str], None] = lambda _: None,
    ) -> "DetectorGate":
        """Have PyTorch answer.

        Args:
            detector: the detector.
            photos: a directory of them, or None for something synthetic.
            timed: whether times mean anything.
            report: told of every photo, as they take their time.

        Raises:
            ExportError: there is no photo in the directory, or one can't be read.
        """
        samples = (
            [_of_photo(detector, file, report) for file in _files(photos)]
            if photos
            else list(_synthetic(detector))
        )
        return cls(
            detector.config,
            detector.anchors.numpy(),
            samples,
            has_photos=photos is not None,
            timed=timed,
        )

    def save(self, path: Path) -> None:
        """Write what PyTorch has answered into a file, for a host without the detector."""
        arrays = {
            f"{i}.{name}": value
            for i, one in enumerate(self.samples)
            for name, value in one.to_arrays().items()
        }
        config = json.dumps(self._config.to_dict())
        with path.open("wb") as file:
            np.savez(
                file,
                config=config,
                anchors=self._anchors,
                samples=len(self.samples),
                has_photos=self._has_photos,
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> "DetectorGate":
        """Read what `save` wrote.

        Raises:
            ExportError: the file is missing or damaged.
        """
        try:
            with np.load(path) as archive:
                arrays = {name: archive[name] for name in archive.files}
            config = DetectorConfig.from_dict(json.loads(str(arrays["config"])))
            samples = [
                Sample.of_arrays({name: arrays[f"{i}.{name}"] for name in Sample.names()})
                for i in range(int(arrays["samples"]))
            ]
            has_photos = bool(arrays["has_photos"])
            return cls(config, arrays["anchors"], samples, has_photos=has_photos)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, CheckpointError) as error:
            raise ExportError(f"{path} can't be read: {error}; export again") from error

    def check(self, load: Callable[[Graph], Run]) -> DetectorCheck:
        """Run both networks of one precision; one is held at a time."""
        maps, found = _run_all(load(PROPOSAL_NETWORK), [one.photo for one in self.samples])
        map_cosines = [
            _cosine(map_["res4"], one.res4, axis=1).mean()
            for map_, one in zip(maps, self.samples, strict=True)
        ]
        run = load(REGION_NETWORK)
        inputs = [one.inputs(REGION_NETWORK) for one in self.samples]
        regions, pooled = _run_all(run, inputs)
        cosines = np.concatenate(
            [
                _cosine(ours["proposal_features"], one.features, axis=2)
                for ours, one in zip(regions, self.samples, strict=True)
            ]
        )
        recall = None
        if self._has_photos:
            each = [
                self._recall(run, map_, one) for map_, one in zip(maps, self.samples, strict=True)
            ]
            recall = round(float(np.mean(each)), 4)
        return DetectorCheck(
            round(float(np.mean(map_cosines)), 6),
            round(float(cosines.mean()), 6),
            round(float(cosines.min()), 6),
            recall,
            round(found + pooled, 3) if self._timed else None,
        )

    def _recall(self, run: Run, maps: dict[str, npt.NDArray[Any]], sample: Sample) -> float:
        """Which part of the regions that PyTorch chooses an engine chooses too."""
        proposals = propose(
            maps["objectness"][0], maps["deltas"][0], self._anchors, sample.size, self._config
        )
        results = run({"res4": maps["res4"], "proposals": proposals[None]})
        ours = choose(
            results["proposal_features"][0], results["class_scores"][0], proposals, self._config
        )
        theirs = choose(sample.features[0], sample.classes[0], sample.proposals[0], self._config)
        return float((overlaps(theirs.boxes, ours.boxes).max(axis=1) >= MATCHED).mean())


def _files(photos: Path) -> list[Path]:
    files = sorted(one for one in photos.rglob("*") if one.suffix.lower() in PHOTO_SUFFIXES)
    if not files:
        raise ExportError(f"{photos} holds no photos ({', '.join(PHOTO_SUFFIXES)})")
    return files


def _of_photo(detector: RegionDetector, file: Path, report: Callable[[str], None]) -> Sample:
    report(f"  PyTorch looks at {file.name}")
    try:
        pixels = decode(file.read_bytes())
    except (OSError, TeranInputError) as error:
        raise ExportError(f"{file} can't be used: {error}") from error
    size = (pixels.shape[0], pixels.shape[1])
    values = prepared(pixels, scale_of(size, detector.config))
    frame = (side + -side % SIDE_STEP for side in values.shape[1:])
    values, mask = padded(values, *frame)
    photo: Arrays = {"pixels": values[None], "pixel_mask": mask[None]}
    maps = _answers(detector, photo)
    anchors = detector.anchors.numpy()
    boxes = propose(maps["objectness"][0], maps["deltas"][0], anchors, size, detector.config)
    return _sample(detector, photo, size, maps, boxes)


def _synthetic(detector: RegionDetector) -> Iterator[Sample]:
    config = detector.config
    short = -(-config.min_side // SIDE_STEP) * SIDE_STEP
    long = min(-(-config.max_side // SIDE_STEP), round(short * 4 / 3) // SIDE_STEP) * SIDE_STEP
    for seed in range(_SYNTHETIC):
        size = (short, long) if seed % 2 else (long, short)
        photo = random_inputs(PROPOSAL_NETWORK, config, (1, *size), seed)
        maps = _answers(detector, photo)
        shape = (1, *maps["res4"].shape[2:], min(_FEW, config.proposals))
        boxes = random_inputs(REGION_NETWORK, config, shape, seed)["proposals"][0]
        yield _sample(detector, photo, size, maps, boxes)


def _answers(detector: RegionDetector, photo: Arrays) -> Arrays:
    with torch.inference_mode():
        results = detector.proposal_network(*(torch.from_numpy(one) for one in photo.values()))
    return {name: one.numpy() for name, one in zip(PROPOSAL_NETWORK.outputs, results, strict=True)}


def _sample(
    detector: RegionDetector, photo: Arrays, size: tuple[int, int], maps: Arrays, boxes: Floats
) -> Sample:
    network = PORTABLE_REGION_NETWORK.module(detector).eval()
    res4 = maps["res4"].astype(np.float32)
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(res4), torch.from_numpy(part[None]))
            for part in np.split(boxes, range(_FEW, len(boxes), _FEW))
        ]
    features, classes = (
        np.concatenate([one.numpy() for one in each], axis=1) for each in zip(*parts, strict=True)
    )
    return Sample(photo, size, res4, boxes[None], features, classes)


def _run_all(run: Run, inputs: Sequence[Arrays]) -> tuple[list[dict[str, npt.NDArray[Any]]], float]:
    """All results, and the median milliseconds of one."""
    results, times = [], []
    for one in inputs:
        start = perf_counter()
        results.append({name: value.copy() for name, value in run(one).items()})
        times.append(perf_counter() - start)
    return results, 1e3 * median(times[1:] or times)


def _cosine(ours: npt.NDArray[Any], theirs: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float64]:
    """Along an axis, wherever theirs is not all zeros, as outside a photo."""
    first, second = ours.astype(np.float64), theirs.astype(np.float64)
    norms = np.linalg.norm(first, axis=axis) * np.linalg.norm(second, axis=axis)
    products = (first * second).sum(axis=axis)
    cosines = np.nan_to_num(products / np.maximum(norms, 1e-12))
    result: npt.NDArray[np.float64] = cosines[second.any(axis=axis)]
    return result
