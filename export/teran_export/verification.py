"""Runs the gate where a repository is served, for engines that could not be run where it was made.

What it finds is written beside the manifest, so that it is done once for a GPU and version.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from teran.errors import ExportError
from teran_export import manifest
from teran_export.detector_gate import DetectorGate
from teran_export.engines import ENGINES
from teran_export.engines.base import Run
from teran_export.gate import Answers, Gate, PrecisionCheck
from teran_export.graphs import Graph
from teran_export.manifest import ANSWERS, DETECTOR_ANSWERS, Manifest
from teran_export.options import MAX_LOSS
from teran_export.repository import VERSION

NAME = "verified.json"


def verify(repository: Path, report: Callable[[str], None] = lambda _: None) -> str:
    """Check a repository's engines on this host, unless that has been done.

    Args:
        repository: from `teran export`.
        report: told what is done.

    Returns:
        What was found, in a sentence.

    Raises:
        ExportError: they can't be run here, or differ too much from PyTorch; says by how much.
    """
    published = manifest.read(repository)
    if published is None:
        raise ExportError(f"{repository} was not published by `teran export`")
    if published.verified:
        return "checked when it was exported"
    engine = ENGINES[published.request["engine"]]
    if not engine.runs_here:
        raise ExportError(f"{repository} can't be checked here: {engine.name} finds no GPU")
    host = engine.versions()
    known = _known(repository, published, host)
    if known is None:
        report(f"checking the engines on {host.get('gpu', 'this host')}, for the first time")
        known = _check(repository, published)
        _write(repository, {"of": published.created, "host": host, **known}, report)
    if known["refused"]:
        raise ExportError(f"{repository} must not be served here: {known['refused']}")
    return f"checked on {host.get('gpu', 'this host')}"


def _check(repository: Path, published: Manifest) -> dict[str, Any]:
    engine = ENGINES[published.request["engine"]]

    def loader(precision: str) -> Callable[[Graph], Run]:
        return lambda graph: engine.load(graph, repository / graph.name / VERSION, precision)

    max_loss = published.request.get("max_loss", MAX_LOSS)
    gate_of_encoders = Gate(Answers.load(repository / ANSWERS), max_loss=max_loss)
    check: PrecisionCheck = gate_of_encoders.check(loader(published.precision))
    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "precision": published.precision,
        **asdict(check),
        "refused": check.failure(),
    }
    if published.detector:
        gate = DetectorGate.load(repository / DETECTOR_ANSWERS)
        of_detector = gate.check(loader(published.detector["precision"]))
        found["detector"] = asdict(of_detector)
        found["refused"] = found["refused"] or of_detector.failure()
    return found


def _known(repository: Path, published: Manifest, host: Mapping[str, str]) -> dict[str, Any] | None:
    """What was found before, of these engines on such a host."""
    try:
        found: dict[str, Any] = json.loads((repository / NAME).read_text(encoding="utf-8"))
        return found if (found["of"], found["host"]) == (published.created, host) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(repository: Path, found: Mapping[str, Any], report: Callable[[str], None]) -> None:
    try:
        (repository / NAME).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:  # as in a container, whose repository can't be written
        report(f"it will be checked again next time: {error}")
