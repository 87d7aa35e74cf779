"""From a bundle to a published model repository, in one step that happens entirely or not at all.

`OUT` is a symbolic link to a hidden directory beside it; publishing writes a new directory and then
moves the link. The previous directory stays, so that a server running from it is not disturbed.
"""

import json
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import teran
from teran.errors import ExportError
from teran.evaluation.data import open_regions, read_split, root_of
from teran.evaluation.data.captions import dataset_of
from teran.model import TeranModel, bundle
from teran.resources import BACKENDS, MODEL_REPOSITORY
from teran_export import manifest
from teran_export.calibration import CalibrationData
from teran_export.detector_export import add_detector, read_detector
from teran_export.engines import ENGINES, Engine
from teran_export.engines.base import TIMING_CACHE, Run, Source
from teran_export.gate import Answers, EncoderCheck, Gate, PrecisionCheck
from teran_export.graphs import (
    ALIGNMENT,
    FEATURE_TYPES,
    GRAPHS,
    TEXTUAL_ENCODER,
    VISUAL_ENCODER,
    Graph,
)
from teran_export.manifest import Manifest
from teran_export.options import AUTO, ExportOptions
from teran_export.repository import (
    ENSEMBLES,
    GALLERY_ENSEMBLES,
    GALLERY_POOLINGS,
    PHOTO_ENSEMBLES,
    PHOTO_GALLERY_ENSEMBLES,
    RepositoryBuilder,
)
from teran_export.sensitivity import keep_in_float
from teran_export.trial import try_all

CALIBRATED = ("int8", "fp8")
_UNTIMED = "fp16"
"""What `auto` is where nothing can be timed."""
_MODEL = tuple(
    Path(teran.__file__).parent / part
    for part in ("model", "detector", "tokenizer.py", "contract.py")
)
ENCODERS = (VISUAL_ENCODER, TEXTUAL_ENCODER)
Report = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """Where the repository is, what it says of itself, and whether anything had to be done."""

    path: Path
    manifest: Manifest
    built: bool


def export(options: ExportOptions, report: Report = lambda _: None) -> Published:
    """Publish a repository, or find that the published one is up to date.

    Args:
        options: what to publish.
        report: called with a line before each long step.

    Raises:
        CheckpointError: the bundle can't be read.
        ExportError: a graph or an engine fails its checks; what was published before stays.
    """
    engine = ENGINES.get(options.engine)
    if engine is None:
        raise ExportError(f"no engine {options.engine!r}; there are {', '.join(ENGINES)}")
    if options.feature_precision not in FEATURE_TYPES:
        known = " and ".join(FEATURE_TYPES)
        raise ExportError(
            f"features can't be sent in {options.feature_precision!r}; there are {known}"
        )
    precisions = _wanted(engine, options)
    if options.out.exists() and not options.out.is_symlink():
        raise ExportError(f"{options.out} exists and was not published by this command; move it")
    request = _request(options, engine)
    published = manifest.read(options.out)
    if published and not options.force and published.is_current(options.out, request):
        return Published(options.out, published, built=False)

    options.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{options.out.name}-", dir=options.out.absolute().parent
        ) as folder:
            repository = Path(folder) / "repository"
            made = _build(options, engine, precisions, request, Path(folder), repository, report)
            _swap(repository, options.out)
    except OSError as error:
        raise ExportError(f"can't publish to {options.out}: {error}") from error
    return Published(options.out, made, built=True)


def _wanted(engine: Engine, options: ExportOptions) -> list[str]:
    """The precisions to try. Those that adapt to samples need real ones to be a default."""
    available = list(engine.precisions(options.build))
    if options.precision == AUTO and available:
        if not engine.runs_here:
            return [_UNTIMED]
        has_both = options.calibration and options.calibration.suffix != ".tsv"
        return [p for p in available if p not in CALIBRATED or has_both]
    if options.precision not in available:
        raise ExportError(
            f"{engine.name} offers {', '.join(available) or 'nothing'} on this machine, "
            f"not {options.precision!r}"
        )
    return [options.precision]


def _wanted_of_detector(engine: Engine, options: ExportOptions) -> list[str]:
    """Likewise, where photos are its real samples."""
    return _wanted(engine, replace(options, calibration=options.photos))


def _request(options: ExportOptions, engine: Engine) -> dict[str, Any]:
    """Everything that, when it changes, makes a published repository stale."""
    calibration = options.calibration
    return {
        "bundle": bundle.fingerprint(options.bundle),
        "engine": engine.name,
        "precision": options.precision,
        "calibration": manifest.hash_tree(calibration) if calibration else None,
        "gate": _gate_request(options),
        "max_loss": options.max_loss,
        "detector": manifest.hash_tree(options.detector) if options.detector else None,
        "photos": manifest.hash_tree(options.photos) if options.photos else None,
        "proposals": options.proposals,
        "feature_precision": options.feature_precision,
        "limits": asdict(options.limits),
        "build": asdict(options.build),
        "versions": {"teran": teran.__version__, **engine.versions()},
        "sources": manifest.hash_tree(MODEL_REPOSITORY, BACKENDS, Path(__file__).parent, *_MODEL),
        "machine": platform.machine(),
        "precisions": list(engine.precisions()),
        "runs_here": engine.runs_here,
    }


def _gate_request(options: ExportOptions) -> dict[str, Any] | None:
    if not options.gate:
        return None
    root = root_of(options.gate, dataset_of(options.gate))
    split = read_split(root, dataset_of(root), options.gate_split)
    return {
        "regions": open_regions(root).fingerprint(),
        "captions": sha256(json.dumps([split.image_ids, split.captions]).encode()).hexdigest(),
        "split": options.gate_split,
        "images": options.gate_images,
    }


def _build(
    options: ExportOptions,
    engine: Engine,
    precisions: list[str],
    request: dict[str, Any],
    work: Path,
    repository: Path,
    report: Report,
) -> Manifest:
    report(f"reading the bundle {options.bundle}")
    model = TeranModel.from_pretrained(options.bundle)
    if model.tokenizer is None:
        raise ExportError(f"{options.bundle} has no tokenizer.json; convert it with --vocabulary")
    detector = read_detector(options, model.config.feature_dim)
    graphs = [graph.with_features(options.feature_precision) for graph in GRAPHS]
    errors = _write_graphs(graphs, model, work, report) if engine.starts_from_onnx else {}
    data = (
        CalibrationData.load(options.calibration, model.config, model.tokenizer)
        if options.calibration
        else CalibrationData.synthetic(model.config)
    )
    sources = {
        graph: Source(graph, graph.path(work), model, options.limits, options.build, report=report)
        for graph in graphs
    }
    _keep_timing_cache(options.out, work)
    judged = data
    if options.gate:
        report(f"asking PyTorch for {options.gate}")
        judged = CalibrationData.of_dataset(
            options.gate, options.gate_split, options.gate_images, model.config, model.tokenizer
        )
    answers = Answers.of(model, judged, options.feature_precision)
    gate = Gate(answers, timed=engine.runs_here, max_loss=options.max_loss)
    samples = data.with_features(options.feature_precision)
    chosen, checks = try_all(
        f"the encoders for {engine.name}",
        precisions,
        lambda precision: _try(engine, precision, gate, samples, sources, work),
        report,
    )
    report(f"publishing {engine.name} in {chosen}")
    builder = RepositoryBuilder(repository, model.config, options.limits, options.feature_precision)
    builder.add_tokenizer(model.tokenizer)
    for graph in ENCODERS:
        folder = builder.version_directory(graph.name)
        for file in engine.files:
            (_engine_directory(work, chosen, graph.name) / file).rename(folder / file)
        builder.add_engine(sources[graph], engine, chosen)
    # The alignment is a single matmul and decides the ranking: it stays in fp32.
    folder = builder.version_directory(ALIGNMENT.name)
    engine.build(sources[ALIGNMENT], folder, "fp32", [])
    builder.add_engine(sources[ALIGNMENT], engine, "fp32")
    _keep_timing_cache(work, repository)
    builder.add_admission()
    builder.add_ensembles(ENSEMBLES)
    if model.config.pooling in GALLERY_POOLINGS:
        builder.add_gallery(request["bundle"])
        builder.add_stored()
        builder.add_ensembles(GALLERY_ENSEMBLES)
    else:
        report(f"no gallery: it can't be searched by {model.config.pooling.value}")
    record = None
    if detector:
        wanted = _wanted_of_detector(engine, options)
        record = add_detector(detector, options, engine, wanted, builder, work, report)
        builder.add_ensembles(PHOTO_ENSEMBLES)
        if model.config.pooling in GALLERY_POOLINGS:
            builder.add_ensembles(PHOTO_GALLERY_ENSEMBLES)
    if not engine.runs_here:
        report("not run here: `teran serve` checks it on its GPU first, or `teran verify` does")
        answers.save(repository / manifest.ANSWERS)
    made = Manifest(
        request=request,
        precision=chosen,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        pooling=model.config.pooling.value,
        graphs=errors,
        detector=asdict(record) if record else None,
        checks={
            p: {
                **asdict(c),
                "calibration": data.source,
                "judged_on": judged.source,
                "refused": c.failure(),
            }
            for p, c in checks.items()
        },
        files={
            str(path.relative_to(repository)): path.stat().st_size
            for path in sorted(repository.rglob("*"))
            if path.is_file()
        },
        verified=engine.runs_here,
    )
    made.write(repository)
    return made


def _write_graphs(
    graphs: Sequence[Graph], model: TeranModel, work: Path, report: Report
) -> dict[str, float]:
    """Write all parts as ONNX; the largest difference of each from PyTorch."""
    from teran_export.onnx_graphs import write_graph  # which other engines do without

    errors = {}
    for graph in graphs:
        report(f"writing the {graph.name} graph and checking it against PyTorch")
        errors[graph.name] = write_graph(graph, model, work)
    return errors


def _keep_timing_cache(before: Path, after: Path) -> None:
    """Take a builder's measurements along, where there are any."""
    if (before / TIMING_CACHE).is_file():
        shutil.copyfile(before / TIMING_CACHE, after / TIMING_CACHE)


def _engine_directory(work: Path, precision: str, graph: str) -> Path:
    return work / precision / graph


def _try(
    engine: Engine,
    precision: str,
    gate: Gate,
    data: CalibrationData,
    sources: Mapping[Graph, Source],
    work: Path,
) -> PrecisionCheck:
    """Build both encoders in one precision and check them."""

    def load(graph: Graph) -> Run:
        return engine.load(graph, _engine_directory(work, precision, graph.name), precision)

    def build(graph: Graph, groups: tuple[str, ...] = ()) -> EncoderCheck:
        directory = _engine_directory(work, precision, graph.name)
        directory.mkdir(parents=True, exist_ok=True)
        source = replace(sources[graph], kept_in_float=groups)
        engine.build(source, directory, precision, data.batches(graph))
        return gate.check_encoder(graph, load(graph))[0]

    kept: dict[str, tuple[str, ...]] = {}
    for graph in ENCODERS:
        if not build(graph).passes() and precision == "int8":
            kept[graph.name] = keep_in_float(partial(build, graph))
    return gate.check(load, kept)


def _swap(repository: Path, out: Path) -> None:
    """Move `repository` beside `out` and point `out` at it; of older ones keep the last."""
    out = out.absolute()
    previous = out.resolve() if out.is_symlink() else None
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    target = out.parent / f".{out.name}.{stamp}"
    repository.rename(target)
    link = out.parent / f".{out.name}.{stamp}.link"
    link.symlink_to(target.name)
    link.replace(out)
    published = re.compile(re.escape(f".{out.name}.") + r"\d{8}T\d{12}")
    for old in out.parent.iterdir():
        if published.fullmatch(old.name) and old.is_dir() and old not in (target, previous):
            shutil.rmtree(old, ignore_errors=True)
