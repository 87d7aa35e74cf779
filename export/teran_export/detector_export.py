"""The part of a publication that takes photos: the detector's engines, judged and laid out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from teran.detector import RegionDetector
from teran.errors import ExportError
from teran_export.detector_gate import DetectorCheck, DetectorGate
from teran_export.detector_graphs import PORTABLE_REGION_NETWORK, PROPOSAL_NETWORK, REGION_NETWORK
from teran_export.engines import Engine
from teran_export.engines.base import Source
from teran_export.graphs import Graph
from teran_export.limits import MAX_REGIONS
from teran_export.manifest import DETECTOR_ANSWERS
from teran_export.options import ExportOptions
from teran_export.repository import RepositoryBuilder
from teran_export.trial import try_all


@dataclass(frozen=True)
class DetectorRecord:
    """What the manifest says of it."""

    config: dict[str, Any]
    precision: str
    graphs: dict[str, float]
    """Largest difference of each ONNX graph from PyTorch, relative where values exceed 1."""
    checks: dict[str, Any]
    """Per precision tried: what it keeps, what it costs, and why it was refused, if it was."""


def read_detector(options: ExportOptions, feature_dim: int) -> RegionDetector | None:
    """The detector that is asked for, if any.

    Raises:
        CheckpointError: it can't be read.
        ExportError: its features are not those the model takes.
    """
    if options.detector is None:
        return None
    detector = RegionDetector.from_pretrained(options.detector)
    if detector.config.feature_dim != feature_dim:
        raise ExportError(
            f"{options.detector} gives features of {detector.config.feature_dim} values, the model "
            f"takes {feature_dim}"
        )
    if detector.config.max_regions > MAX_REGIONS:
        raise ExportError(
            f"{options.detector} chooses up to {detector.config.max_regions} regions; at most "
            f"{MAX_REGIONS} are served"
        )
    if options.proposals:
        detector.config = replace(detector.config, proposals=options.proposals)
    return detector


def add_detector(
    detector: RegionDetector,
    options: ExportOptions,
    engine: Engine,
    precisions: Sequence[str],
    builder: RepositoryBuilder,
    work: Path,
    report: Callable[[str], None],
) -> DetectorRecord:
    """Build both networks, check them, and add them with what belongs to them.

    Raises:
        ExportError: no precision passes.
    """
    regions = REGION_NETWORK if engine.starts_from_onnx else PORTABLE_REGION_NETWORK
    sources = {
        graph: Source(
            graph, graph.path(work), detector, options.limits, options.build, report=report
        )
        for graph in (PROPOSAL_NETWORK, regions)
    }
    errors = _write_graphs(sources, report) if engine.starts_from_onnx else {}
    report("asking PyTorch what the detector finds")
    gate = DetectorGate.of(detector, options.photos, timed=engine.runs_here, report=report)

    def directory(precision: str, graph: Graph) -> Path:
        return work / precision / graph.name

    def attempt(precision: str) -> DetectorCheck:
        for graph, source in sources.items():
            directory(precision, graph).mkdir(parents=True, exist_ok=True)
            samples = [sample.inputs(graph) for sample in gate.samples]
            engine.build(source, directory(precision, graph), precision, samples)
        return gate.check(lambda graph: engine.load(graph, directory(precision, graph), precision))

    what = f"the detector for {engine.name}"
    chosen, checks = try_all(what, precisions, attempt, report)
    report(f"publishing the detector in {chosen}")
    for graph, source in sources.items():
        folder = builder.version_directory(graph.name)
        for file in engine.files:
            (directory(chosen, graph) / file).rename(folder / file)
        builder.add_engine(source, engine, chosen)
    builder.add_photo_models(detector, options.limits.max_photos if engine.on_gpu else 1)
    if not engine.runs_here:
        gate.save(builder.directory / DETECTOR_ANSWERS)
    return DetectorRecord(
        detector.config.to_dict(),
        chosen,
        errors,
        {p: {**asdict(c), "refused": c.failure()} for p, c in checks.items()},
    )


def _write_graphs(sources: dict[Graph, Source], report: Callable[[str], None]) -> dict[str, float]:
    """Write both networks as ONNX; the largest difference of each from PyTorch."""
    from teran_export.onnx_graphs import write_graph  # which other engines do without

    errors = {}
    for graph, source in sources.items():
        report(f"writing the {graph.name} graph and checking it against PyTorch")
        errors[graph.name] = write_graph(graph, source.model, source.onnx.parent)
    return errors
