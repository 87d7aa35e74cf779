"""How long searches take while another client indexes as fast as it can.

Searches come at random moments, so many a second, whether answers come or not; for a while nobody
else is there, then another process indexes images, or captions, and so on in turns.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from teran_client import Entry, TeranClient

from benchmarks import machine
from benchmarks.overload import Caller, Tally, read_captions, served
from benchmarks.soak import picture

_PHOTOS = 256
"""Different images, which are indexed over and over."""
_START = 5.0
"""Seconds until the other client is under way."""
_GALLERIES = {"images": "default", "captions": "sentences"}
"""Where what is indexed goes: images into the gallery that is searched, in the place of its own."""
console = Console()


def index(
    url: str,
    kind: str,
    captions: list[str],
    items: int,
    over: Event,
    outcome: "multiprocessing.Queue[list[float] | str]",
) -> None:
    """Index until it is over, and say when each item was stored, or what went wrong."""
    generator = np.random.default_rng(1)

    contents = [picture(generator, 2048) for _ in range(_PHOTOS)] if kind == "images" else captions

    def entries() -> Iterator[Entry]:
        number = 0
        while not over.is_set():
            yield Entry(contents[number % len(contents)], id=f"image-{number % items}")
            number += 1

    try:
        with TeranClient(url, timeout=60) as client:
            stored = client.index(entries(), gallery=_GALLERIES[kind])
            outcome.put([time.monotonic() for _ in stored])
    except Exception as error:
        outcome.put(repr(error))


@contextmanager
def indexing(
    url: str, kind: str, captions: list[str], items: int, rates: list[float]
) -> Iterator[None]:
    """Index in another process meanwhile, and add its rate to `rates`."""
    context = multiprocessing.get_context("spawn")
    over, outcome = context.Event(), context.Queue()
    process = context.Process(
        target=index, args=(url, kind, captions, items, over, outcome), daemon=True
    )
    process.start()
    time.sleep(_START)
    begun = time.monotonic()
    yield
    ended = time.monotonic()
    over.set()
    times = outcome.get(timeout=60)
    process.join()
    if isinstance(times, str):
        raise RuntimeError(f"indexing {kind} failed: {times}")
    rates.append(sum(begun <= one < ended for one in times) / (ended - begun))


def measure(
    url: str,
    captions: list[str],
    items: int,
    kinds: list[str],
    rate: float,
    seconds: float,
    rounds: int,
) -> dict[str, Any]:
    """Search alone and beside each kind of indexing, in turns."""
    tallies = {name: Tally(rounds * seconds, rate) for name in ("alone", *kinds)}
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}

    def search(name: str) -> None:
        tally, one = tallies[name], asyncio.run(at_rate())
        tally.times += one.times
        tally.refusals += one.refusals
        tally.errors += one.errors

    async def at_rate() -> Tally:
        caller = Caller(url, "searches", captions)
        await caller.alone()
        tally = await caller.at_rate(rate, seconds)
        await caller.close()
        return tally

    for _ in range(rounds):
        search("alone")
        for kind in kinds:
            with indexing(url, kind, captions, items, rates[kind]):
                search(kind)
            console.print(kind, tallies[kind].summary(), rates[kind])
    usual = tallies["alone"].summary()
    results: dict[str, Any] = {"alone": usual}
    for kind in kinds:
        unaccompanied: list[float] = []
        with indexing(url, kind, captions, items, unaccompanied):
            time.sleep(seconds)
        beside = tallies[kind].summary()
        results[f"beside indexing {kind}"] = {
            **beside,
            "times_of_p50": round(beside["p50_ms"] / usual["p50_ms"], 2),
            "times_of_p99": round(beside["p99_ms"] / usual["p99_ms"], 2),
            "indexed_a_second": round(float(np.median(rates[kind])), 1),
            "indexed_a_second_without_searches": round(unaccompanied[0], 1),
        }
    return results


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--captions", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--kinds", nargs="+", choices=_GALLERIES, default=list(_GALLERIES))
    parser.add_argument("--items", type=int, default=1000, help="images in the gallery")
    parser.add_argument("--rate", type=float, default=20, help="searches a second")
    parser.add_argument("--seconds", type=float, default=30, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    captions = read_captions(options.captions)
    with served(options.repository, options.items) as server:
        results = measure(
            server.url,
            captions,
            options.items,
            options.kinds,
            options.rate,
            options.seconds,
            options.rounds,
        )
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "model": json.loads((options.repository / "manifest.json").read_text())["request"][
            "engine"
        ],
        "results": results,
    }
    path = options.out / "beside_indexing.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("searches", "p50 ms", "p99 ms", "times of p99", "refused", "indexed a second")
    for name, one in results.items():
        cells = [one["p50_ms"], one["p99_ms"], one.get("times_of_p99", ""), one["refused"]]
        table.add_row(name, *map(str, [*cells, one.get("indexed_a_second", "")]))
    console.print(table)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
