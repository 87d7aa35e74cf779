"""Is this tree as fast as another commit? Both are served at once and measured in turn.

    python -m benchmarks.compare HEAD~10 --bundle build/full --precision int8

The other commit is checked out into build/compare, exports the same bundle and serves it beside
this tree; each is measured with its own client. Captions come as they are, one after the other;
searches go through 10,000 random images.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from hatch_build import FLAGS
from teran.cli.background import background_server

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "compare"
CLIENT = Path(__file__).with_name("compare_client.py")
CALLS = {"one caption": 150, "32 captions": 12, "one image": 30, "32 images": 3, "search": 60}
console = Console()


def main() -> None:
    """Compare as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("revision", help="the commit to compare with")
    parser.add_argument("--bundle", type=Path, default=ROOT / "examples/scenes/model")
    parser.add_argument("--captions", type=Path, help="captions of COCO, as JSON")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--images", type=int, default=10_000, help="in the gallery")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--name", default="compare", help="of the result")
    options = parser.parse_args()

    options.bundle = options.bundle.absolute()
    options.captions = options.captions and options.captions.absolute()
    before = check_out(options.revision)
    os.chdir(WORK)  # a model process imports what it finds where it was started
    trees = {"before": before, "now": ROOT}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(tree, name, options)) for name, tree in trees.items()
        }
        for number in range(options.rounds):
            order = list(trees) if number % 2 == 0 else list(trees)[::-1]
            for name in order:
                console.print(f"round {number + 1} of {options.rounds}: {name}")
                found[name].append(probe(trees[name], servers[name], options.captions))
        memory = {name: servers[name]["gallery_mib"] for name in trees}
    rows = {
        what: {name: round(median(one[what] for one in found[name]), 2) for name in trees}
        for what in CALLS
    }
    for row in rows.values():
        row["ratio"] = round(row["now"] / row["before"], 3)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "before": git("rev-parse", "--short", options.revision),
        "now": git("rev-parse", "--short", "HEAD"),
        "precision": options.precision,
        "images": options.images,
        "milliseconds": rows,
        "start_seconds": {name: servers[name]["start_seconds"] for name in trees},
        "gallery_process_mib": memory,
        "rounds": found,
    }
    path = ROOT / "benchmarks" / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = Table("p50, ms", *trees, "ratio")
    for what, row in rows.items():
        table.add_row(what, *(f"{value:g}" for value in row.values()))
    console.print(table)
    console.print(f"start {result['start_seconds']}, gallery's process {memory} MiB; {path}")


def git(*arguments: str) -> str:
    """What git says."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def check_out(revision: str) -> Path:
    """Another commit in a directory of its own, with its native kernel compiled."""
    tree = WORK / git("rev-parse", "--short", revision)
    if not tree.is_dir():
        git("worktree", "add", "--detach", str(tree), revision)
    source = next(tree.glob("teran/**/scan.c"))
    command = ["cc", *FLAGS, "-o", str(source.with_name("libscan.so")), str(source)]
    subprocess.run(command, check=True)
    return tree


def python_of(tree: Path) -> str:
    """An interpreter for which a tree's packages come first, and then what is installed here.

    Through a file of paths, not PYTHONPATH: Triton's model processes read it as well.
    """
    folder = WORK / f"python-{tree.name}"
    if not folder.is_dir():
        venv.create(folder)
    installed = sysconfig.get_path("purelib")
    paths = [str(tree), str(tree / "export"), str(tree / "client"), installed]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / version / "site-packages"
    (site / "tree.pth").write_text("\n".join(paths) + "\n")
    return str(folder / "bin" / "python")


@contextmanager
def serving(tree: Path, name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A tree's server of the bundle, with a filled gallery: its address, start and memory."""
    teran = [python_of(tree), str(CLIENT), "teran", str(tree)]
    repository = WORK / f"{name}-{options.precision}-{options.bundle.name}"
    export = ["export", str(options.bundle), str(repository), "--precision", options.precision]
    subprocess.run([*teran, *export], check=True)
    gallery = str(WORK / f"{name}-gallery-{options.images}")
    flags = ("--gallery", gallery, "--check-interval", "3600")
    started = time.monotonic()
    with background_server(repository, *flags, program=teran) as running:
        server = {"url": running.url, "start_seconds": round(time.monotonic() - started, 1)}
        server["gallery_mib"] = gallery_memory(running.process.pid)
        console.print(f"{name}: filling the gallery")
        run(tree, "fill", running.url, str(options.images))
        yield server


def gallery_memory(pid: int) -> int:
    """Memory of the empty gallery's process that it shares with none, in MiB."""
    for child in psutil.Process(pid).children(recursive=True):
        if any("gallery_0_0" in part for part in child.cmdline()):
            return int(child.memory_full_info().uss >> 20)
    raise SystemExit("there is no process of the gallery")


def run(tree: Path, *arguments: str) -> str:
    """Run this file's other half with a tree's client."""
    command = [python_of(tree), str(CLIENT), *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


def probe(tree: Path, server: dict[str, Any], captions: Path | None) -> dict[str, float]:
    """Median times of a tree's calls, in milliseconds."""
    printed = run(tree, "probe", server["url"], json.dumps(CALLS), str(captions or ""))
    times: dict[str, float] = json.loads(printed)
    return times


if __name__ == "__main__":
    main()
