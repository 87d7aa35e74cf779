"""What a precision costs in retrieval, and gains in speed: the demo, once for each.

Each time detector and encoders are exported in one precision, a server is started, and the demo's
unseen scenes are sent to it as pictures and judged. Where the gate refuses a precision, the result
says why.
"""

import argparse
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from teran_client import TeranClient

from benchmarks import machine
from examples.scenes.dataset import make_contrast_pairs, make_split
from examples.scenes.demo import Drawn, drawn, measure, precisions_of, publish, rounded
from teran.cli.background import background_server
from teran.errors import ExportError

PRECISIONS = ("fp32", "bf16", "int8")
COLUMNS = {
    "R@1": "image_r1",
    "R@10": "image_r10",
    "contrast": "contrast",
    "nouns": "nouns",
    "objects": "objects",
    "pictures/s": "photos_per_second",
    "captions/s": "captions_per_second",
}
console = Console()


def try_precision(
    precision: str, out: Path, scenes: list[Drawn], pairs: list[Drawn]
) -> dict[str, Any]:
    """What was found with detector and encoders in a precision, or why it can't be served."""
    try:
        published = publish(out, precision=precision)
    except ExportError as error:
        return {"refused": str(error)}
    shutil.rmtree(out / "gallery", ignore_errors=True)
    with (
        background_server(published.path, "--gallery", str(out / "gallery")) as server,
        TeranClient(server.url) as client,
    ):
        return rounded(measure(client, scenes, pairs, precisions_of(published)))


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path("build/precisions"))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--scenes", type=int, default=1000, help="unseen scenes")
    parser.add_argument("--pairs", type=int, default=500, help="near-identical pairs")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    scenes = drawn(make_split("test", options.scenes), "scene")
    pairs = drawn(make_contrast_pairs(options.pairs), "pair")
    results = {}
    for precision in options.precisions:
        console.rule(precision)
        results[precision] = try_precision(precision, options.work, scenes, pairs)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "results": results,
    }
    path = options.out / "precisions.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("", *COLUMNS)
    for precision, one in results.items():
        cells = [one.get("refused")] if "refused" in one else [one[key] for key in COLUMNS.values()]
        table.add_row(precision, *map(str, cells))
    console.print(table)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
