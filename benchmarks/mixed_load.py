"""Both encoders at once: what each thread division of the server makes of it.

Two streams, one of captions and one of images, share the server for a while. The divisions are
served in turn, in several rounds, so that a slow spell of the machine hits all of them alike.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table
from teran_client import ImageRegions, TeranClient

from benchmarks import machine
from teran.cli.background import background_server
from teran.runtime.environment import THREADS_VARIABLE, available_cores

BATCH = 8
CAPTION = "a man in a red shirt rides a wave on a board"
LOADS = ("captions alone", "images alone", "captions mixed", "images mixed")


def rate(call: Callable[[], Iterable[object]], seconds: float) -> float:
    """Items a second that a stream of results yields."""
    count, started = 0, time.perf_counter()
    for _ in call():
        count += 1
        if time.perf_counter() - started > seconds:
            break
    return count / (time.perf_counter() - started)


def measure(url: str, image: ImageRegions, seconds: float) -> dict[str, float]:
    """Rates of each encoder alone, and of both at once."""

    def captions() -> float:
        with TeranClient(url, batch_size=BATCH) as client:
            endless = iter(lambda: CAPTION, None)
            return rate(lambda: client.encode_captions(endless), seconds)

    def images() -> float:
        with TeranClient(url, batch_size=BATCH) as client:
            return rate(lambda: client.encode_images(iter(lambda: image, None)), seconds)

    result = {"captions alone": captions(), "images alone": images()}
    mixed: dict[str, float] = {}
    threads = [
        threading.Thread(target=lambda: mixed.update({"captions mixed": captions()})),
        threading.Thread(target=lambda: mixed.update({"images mixed": images()})),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {**result, **mixed}


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    options = parser.parse_args()

    cores = available_cores()
    divisions = {"all cores each": cores, "half the cores each": max(1, cores // 2)}
    random = np.random.default_rng(0)
    corner = random.random((36, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32)
    image = ImageRegions(random.exponential(1.1, (36, 2048)).astype(np.float32), boxes)
    rates: dict[str, dict[str, list[float]]] = {
        name: {load: [] for load in LOADS} for name in divisions
    }
    for _ in range(options.rounds):
        for name, threads in divisions.items():
            for model in ("VISUAL_ENCODER", "TEXTUAL_ENCODER"):
                os.environ[THREADS_VARIABLE.format(model=model)] = str(threads)
            with ExitStack() as stack:
                server = stack.enter_context(background_server(options.repository))
                for load, value in measure(server.url, image, options.seconds).items():
                    rates[name][load].append(value)

    medians = {
        name: {load: round(median(values), 2) for load, values in loads.items()}
        for name, loads in rates.items()
    }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "unit": "items per second, median of the rounds",
        "rounds": options.rounds,
        "threads": divisions,
        "results": medians,
    }
    path = options.out / "mixed_load.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("items a second", *LOADS)
    for name, loads in medians.items():
        table.add_row(name, *(f"{loads[load]:.1f}" for load in LOADS))
    console = Console()
    console.print(table)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
