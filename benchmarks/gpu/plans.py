"""Plans of TensorRT and TensorRT-RTX, built and checked on this host."""

from pathlib import Path
from typing import Any

from teran_export import ExportOptions, export
from teran_export.engines import ENGINES

from benchmarks.gpu.serving import random_bundle
from teran.errors import ExportError
from teran.model import TeranConfig


def sweep(config: TeranConfig, work: Path) -> dict[str, Any]:
    """Every precision that is offered: how close it comes and how long it takes, or why not."""
    bundle, result = random_bundle(config, work / "bundle"), dict[str, Any]()
    for name in ("tensorrt-rtx", "tensorrt"):
        offered = ENGINES[name].precisions()
        result[name] = {one: _tried(bundle, work / f"{name}-{one}", name, one) for one in offered}
    return result


def _tried(bundle: Path, out: Path, engine: str, precision: str) -> dict[str, Any]:
    try:
        made = export(ExportOptions(bundle, out, engine, precision, force=True), print).manifest
    except ExportError as error:
        return {"refused": str(error)[:1000]}
    return {"verified": made.verified, **made.checks[precision]}
