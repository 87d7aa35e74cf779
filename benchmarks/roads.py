"""What serving costs in recall: a data set through PyTorch, a server, and the server's galleries.

The data set are the demo's unseen scenes, as its detector sees them, in the authors' layout and
packed. Each precision is exported with a gate on other scenes, and its ranks are compared with
PyTorch's in fp32.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from teran_client import TeranClient
from teran_export import ExportOptions, export
from teran_research.evaluate import evaluate, folds_of
from teran_research.roads import ModelRoad, ServerRoad
from teran_research.through_gallery import evaluate_through_galleries

from benchmarks import machine
from examples.scenes.demo import MODEL, write_calibration
from examples.scenes.layout import write_layout
from teran.cli.background import background_server
from teran.errors import ExportError
from teran.evaluation.data import RegionSource, Split, open_regions, read_split
from teran.evaluation.data.packed import pack
from teran.evaluation.data.relevance import grade
from teran.evaluation.protocol import Fold, Report

PRECISIONS = ("fp32", "bf16", "int8")
console = Console()


def described(folds: Sequence[Fold], others: Sequence[Fold]) -> dict[str, Any]:
    """Recall, what it is less than others', and how many ranks are not the same."""
    report, other = Report.of(folds), Report.of(others)
    found: dict[str, Any] = {"rsum": round(report.rsum, 2)}
    for kind in ("image", "sentence"):
        one, before = (getattr(each, f"{kind}_retrieval") for each in (report, other))
        for name in ("r1", "r5", "r10"):
            found[f"{kind}_{name}"] = round(getattr(one, name), 2)
            found[f"{kind}_{name}_loss"] = round(getattr(before, name) - getattr(one, name), 2)
        found[f"{kind}_ndcg_rouge_l"] = round(one.ndcg["rouge_l"], 4)
    for kind in ("image_ranks", "caption_ranks"):
        changed = (
            (getattr(a, kind) != getattr(b, kind)).sum() for a, b in zip(folds, others, strict=True)
        )
        found[f"{kind}_changed"] = int(sum(changed))
    return found


def measure(work: Path, split: Split, source: RegionSource, validation: Path) -> dict[str, Any]:
    """All roads, in every precision."""
    folds = folds_of(split, "5k")
    grades, cache = grade(work, split, folds), work / "cache"
    base = evaluate(folds, grades, source, ModelRoad(MODEL), cache)
    results: dict[str, Any] = {"PyTorch fp32": described(base, base)}
    write_calibration(work / "calibration.npz")
    for precision in PRECISIONS:
        console.rule(precision)
        options = ExportOptions(
            MODEL,
            work / "repository",
            precision=precision,
            calibration=work / "calibration.npz",
            gate=validation,
        )
        try:
            published = export(options, console.print)
        except ExportError as error:
            results[f"server {precision}"] = {"refused": str(error)}
            continue
        with (
            background_server(published.path, "--gallery", str(work / precision)) as server,
            TeranClient(server.url) as client,
        ):
            served = evaluate(folds, grades, source, ServerRoad(client), cache)
            searched = evaluate_through_galleries(folds, grades, source, client)
        lost = published.manifest.checks[precision]["recall_loss"]
        results[f"server {precision}"] = described(served, base) | {"lost_at_the_gate": lost}
        results[f"gallery {precision}"] = described(searched, base)
    return results


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/roads"))
    parser.add_argument("--scenes", type=int, default=1000)
    options = parser.parse_args()
    work = options.work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_layout(work / "test", "test", options.scenes)
    write_layout(work / "val", "val", options.scenes)
    split = read_split(work / "test", "f30k", "test")
    pack(open_regions(work / "test"), split.image_ids, work / "packed")
    results = measure(work, split, open_regions(work / "packed"), work / "val")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "scenes": options.scenes,
        "results": results,
    }
    path = options.out / "roads.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    columns = ("rsum", "image_r1", "sentence_r1", "image_ranks_changed", "caption_ranks_changed")
    table = Table("", *columns)
    for road, found in results.items():
        table.add_row(road, *(str(found.get(name, "")) for name in columns))
    console.print(table)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
