"""What becomes of a server that is asked for three times of what it can do.

Captions, or searches, are sent at fixed rates, whether answers come or not, each once and without
the client's repetition. First at rising rates, which shows the peak of what is answered within the
objective, then at three times that rate, then a lone request, and at last the rising rates again,
as a host may have become slower meanwhile: the peak is the mean of both. With `--against`, a server
without the limit is asked the same, for comparison. The load is made on the same host, and takes
its part of the processors.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from teran_client import Entry, ImageRegions, TeranClient
from teran_client.address import CHANNEL_OPTIONS
from teran_client.protocol import caption_inputs, infer_request

from benchmarks import machine
from teran.cli.background import BackgroundServer, background_server
from teran.runtime.settings import Admission

METHOD = "/inference.GRPCInferenceService/ModelInfer"
LOADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "captions": ("encode_caption", ("word_embeddings", "word_mask", "tokens")),
    "searches": ("search", ("ids", "scores", "records", "report")),
}
OBJECTIVE = 0.2
"""Seconds in which an answer is of use."""
FACTOR = 3
CHANNELS = 4
console = Console()


@dataclass
class Tally:
    """What came of the requests of one rate."""

    seconds: float
    rate: float
    times: list[float] = field(default_factory=list)
    """Seconds of those that were answered."""
    refusals: list[float] = field(default_factory=list)
    """Seconds of those that were refused."""
    errors: Counter[str] = field(default_factory=Counter)
    stolen: float = 0.0
    """Share of the processors' time that other guests of the host had."""

    def summary(self) -> dict[str, Any]:
        """Rates a second, and milliseconds."""
        good = sum(one <= OBJECTIVE for one in self.times)

        def quantile(values: list[float], q: float) -> float | None:
            return round(1e3 * float(np.quantile(values, q)), 1) if values else None

        return {
            "offered": round(self.rate, 1),
            "answered": round(len(self.times) / self.seconds, 1),
            "goodput": round(good / self.seconds, 1),
            "refused": round(len(self.refusals) / self.seconds, 1),
            "errors": dict(self.errors),
            "stolen": round(self.stolen, 3),
            "p50_ms": quantile(self.times, 0.5),
            "p99_ms": quantile(self.times, 0.99),
            "refusal_p99_ms": quantile(self.refusals, 0.99),
        }


class Caller:
    """Sends requests that were written before, so that the load costs little itself."""

    def __init__(self, url: str, load: str, captions: list[str]) -> None:
        model, outputs = LOADS[load]
        parameters = {"k": 10} if load == "searches" else None
        self._requests = [
            infer_request(model, caption_inputs([one]), outputs, parameters).SerializeToString()
            for one in captions
        ]
        self._channels = [
            grpc.aio.insecure_channel(
                url, options=[*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(CHANNELS)
        ]
        self._calls = [channel.unary_unary(METHOD, None, None) for channel in self._channels]
        self._count = 0

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def one(self, tally: Tally) -> None:
        """Send one request and count what comes of it."""
        self._count += 1
        call = self._calls[self._count % CHANNELS]
        request, started = self._requests[self._count % len(self._requests)], time.perf_counter()
        try:
            await call(request, timeout=120)
            tally.times.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            if "teran:overloaded" in (error.details() or ""):
                tally.refusals.append(time.perf_counter() - started)
            else:
                tally.errors[error.code().name] += 1

    async def at_rate(self, rate: float, seconds: float) -> Tally:
        """Send at random moments, so many a second, and wait for all answers."""
        tally, tasks = Tally(seconds, rate), set[asyncio.Task[None]]()
        before = psutil.cpu_times()
        started = due = time.perf_counter()
        while due < started + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(self.one(tally))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            due += random.expovariate(rate)
        await asyncio.gather(*tasks)
        tally.stolen = stolen_since(before)
        return tally

    async def closed(self, clients: int, seconds: float) -> float:
        """Requests a second that so many clients get answered, each one after the other."""
        tally, ends = Tally(seconds, 0), time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < ends:
                await self.one(tally)

        await asyncio.gather(*(client() for _ in range(clients)))
        return len(tally.times) / seconds

    async def alone(self, count: int = 20) -> list[float]:
        """Seconds of requests one after the other."""
        tally = Tally(1, 0)
        for _ in range(count):
            await self.one(tally)
        return tally.times


def stolen_since(before: Any) -> float:
    """Share of the processors' time, since they were at `before`, that other guests had."""
    now = psutil.cpu_times()
    spent = {name: getattr(now, name) - getattr(before, name) for name in before._fields}
    of_guests = spent["guest"] + spent["guest_nice"]  # which counts as the user's too
    return float(spent["steal"] / max(sum(spent.values()) - of_guests, 1e-9))


def memory(server: BackgroundServer) -> float:
    """Bytes of the server's processes together, shared pages counted once."""
    family = [server.process.pid, *_children(server.process.pid)]
    total = 0.0
    for pid in family:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * sum(
            int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")
        )
    return total


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


async def measure(
    server: BackgroundServer, load: str, captions: list[str], step: float, long: float
) -> dict[str, Any]:
    """Find the peak of one load, then ask for three times of it."""
    caller = Caller(server.url, load, captions)
    await caller.closed(8, 5)  # warm
    usual = median(await caller.alone())
    saturation = max([await caller.closed(clients, step) for clients in (4, 8, 16)])

    async def rising() -> list[dict[str, Any]]:
        rates = [part * saturation for part in (0.6, 0.8, 0.9, 1.0, 1.1)]
        return [(await caller.at_rate(rate, step)).summary() for rate in rates]

    rates_before = await rising()
    before = memory(server)
    over = asyncio.create_task(caller.at_rate(FACTOR * saturation, long))
    samples = []
    cpu, started = psutil.Process().cpu_times(), time.perf_counter()
    while not over.done():
        await asyncio.wait([over], timeout=10)
        samples.append(round(memory(server) / 1e6, 1))
    now, tally = psutil.Process().cpu_times(), over.result()
    own = (now.user + now.system - cpu.user - cpu.system) / (time.perf_counter() - started)
    first = (await caller.alone(1))[0]
    again = median(await caller.alone())
    rates_after = await rising()
    await caller.close()
    overload = tally.summary()
    peaks = [max(one["goodput"] for one in rates) for rates in (rates_before, rates_after)]
    return {
        "lone_request_ms": round(1e3 * usual, 1),
        "saturation": round(saturation, 1),
        "rising": rates_before,
        "rising_after": rates_after,
        "peaks": peaks,
        "peak_goodput": round(mean(peaks), 1),
        "overload": overload,
        "goodput_of_peak": round(overload["goodput"] / mean(peaks), 3),
        "cores_of_the_load": round(own, 2),
        "memory_before_mb": round(before / 1e6, 1),
        "memory_mb": samples,
        "first_request_after_ms": round(1e3 * first, 1),
        "lone_request_after_ms": round(1e3 * again, 1),
    }


@contextmanager
def served(repository: Path, items: int, *arguments: str) -> Iterator[BackgroundServer]:
    """A server with a gallery of random images."""
    generator = np.random.default_rng(0)

    def image(i: int) -> Entry:
        corner = generator.random((36, 2)) * 0.5
        boxes = np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32)
        features = generator.exponential(1.1, (36, 2048)).astype(np.float32)
        return Entry(ImageRegions(features, boxes), id=f"image-{i}")

    with (
        TemporaryDirectory() as folder,
        background_server(repository, "--gallery", folder, *arguments) as server,
    ):
        with TeranClient(server.url) as client:
            client.index([image(i) for i in range(items)])
        yield server


def read_captions(path: Path | None) -> list[str]:
    """Captions as they come, from COCO's annotations; or one sentence."""
    if path is None:
        return ["a man in a red shirt rides a wave on a board"]
    annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    captions = [entry["caption"] for entry in annotations]
    random.Random(0).shuffle(captions)
    return captions[:5000]


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--captions", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--items", type=int, default=1000, help="images in the gallery")
    parser.add_argument("--step", type=float, default=15, help="seconds at each rising rate")
    parser.add_argument("--seconds", type=float, default=300, help="of the overload")
    parser.add_argument("--against", action="store_true", help="also without a limit")
    options = parser.parse_args()

    captions = read_captions(options.captions)
    results: dict[str, dict[str, Any]] = {}
    variants: dict[str, tuple[str, ...]] = {"limited": ()}
    if options.against:
        variants["unlimited"] = ("--max-wait", "0")
    for variant, arguments in variants.items():
        seconds = options.seconds if variant == "limited" else min(30.0, options.seconds)
        with served(options.repository, options.items, *arguments) as server:
            results[variant] = {
                load: asyncio.run(measure(server, load, captions, options.step, seconds))
                for load in options.loads
            }
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "model": json.loads((options.repository / "manifest.json").read_text())["request"][
            "engine"
        ],
        "objective_seconds": OBJECTIVE,
        "max_wait_seconds": Admission().max_wait,
        "results": results,
    }
    path = options.out / "overload.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    columns = ("peak", "offered", "goodput", "of the peak", "p99 ms", "then alone, ms")
    table = Table("", *columns)
    for variant, loads in results.items():
        for load, one in loads.items():
            over = one["overload"]
            cells = [one["peak_goodput"], over["offered"], over["goodput"], one["goodput_of_peak"]]
            cells += [over["p99_ms"], one["first_request_after_ms"]]
            table.add_row(f"{load}, {variant}", *map(str, cells))
    console.print(table)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
