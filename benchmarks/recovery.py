"""How long a client notices it when a part of the server fails, and what it loses.

A client searches and encodes images at random moments, so many a second, whether answers come or
not, and repeats what fails, as it does by itself. Meanwhile processes are killed or stopped.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table
from teran_client import AsyncTeranClient, Entry, TeranClient, TeranError
from teran_client.metrics import ClientMetrics

from benchmarks import machine
from benchmarks.overload import OBJECTIVE, read_captions
from benchmarks.soak import picture, processes
from teran.cli.background import BackgroundServer, background_server
from teran.errors import ServingError
from teran.supervisor.host import free_ports

_BEFORE = 2.0
"""Seconds of traffic before something fails."""
_STILL = 2.0
"""Seconds for which a process is stopped."""
console = Console()


@dataclass(frozen=True)
class Call:
    """A request, and what came of it."""

    sent: float
    """When, by the monotonic clock."""
    seconds: float
    error: str = ""


class Service:
    """A server that can be killed as a whole, and started again with what it had."""

    def __init__(self, repository: Path, folder: Path) -> None:
        """Prepare it, with its galleries in `folder`."""
        self._repository, self._folder = repository, folder
        names = ("grpc", "http", "metrics", "health")
        self._ports = dict(zip(names, free_ports("127.0.0.1", len(names)), strict=True))
        self._running = ExitStack()
        self.worker = ThreadPoolExecutor(1)
        """Where faults are made: a server dies with the thread that has started it."""
        self.server = self.start()

    def start(self) -> BackgroundServer:
        self.server = self._running.enter_context(
            background_server(
                self._repository,
                *("--gallery", str(self._folder / "gallery")),
                log=self._folder / "log",
                fixed_ports=self._ports,
            )
        )
        return self.server

    def stop(self) -> None:
        with suppress(ServingError):  # it was killed
            self._running.close()

    def process(self, name: str) -> psutil.Process:
        """The one that runs a model, or the server itself; waits for it to come back."""
        for _ in range(300):
            for found, process in processes(self.server):
                if found == name:
                    return process
            time.sleep(0.1)
        raise ServingError(f"there is no process of {name}")


def kill(name: str) -> Callable[[Service], None]:
    """Kill a process of the server."""
    return lambda service: service.process(name).kill()


def hold(name: str) -> Callable[[Service], None]:
    """Have a process stand still for a while."""

    def work(service: Service) -> None:
        process = service.process(name)
        process.suspend()
        time.sleep(_STILL)
        process.resume()

    return work


def kill_all(service: Service) -> None:
    """Kill the server with all its processes, and start it again."""
    family = [process for _, process in processes(service.server)]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # it died with the one before it
            process.kill()
    psutil.wait_procs(family, timeout=10)  # its ports are free again
    service.stop()
    service.start()


FAULTS: dict[str, tuple[Callable[[Service], None], float]] = {
    "the gallery's process is killed": (kill("gallery"), 8),
    "the textual encoder's process is killed": (kill("textual_encoder"), 8),
    "the visual encoder's process is killed": (kill("visual_encoder"), 8),
    "the tokenizer's process is killed": (kill("tokenizer"), 8),
    "the gallery's process stands still for two seconds": (hold("gallery"), 6),
    # Of which a server comes back three times in five minutes.
    "tritonserver is killed": (kill("tritonserver"), 20),
    "the whole server is killed, and started again": (kill_all, 25),
}
"""What is done, and seconds for which requests are sent after it."""


async def traffic(
    client: AsyncTeranClient, captions: Sequence[str], dim: int, rate: float, seconds: float
) -> list[Call]:
    """Search and encode images in turns, so many a second, and wait for all answers."""
    generator = np.random.default_rng(0)
    photos = [picture(generator, dim) for _ in range(16)]
    calls: list[Call] = []

    async def one(number: int) -> None:
        sent, error = time.monotonic(), ""
        try:
            if number % 2:
                await client.search(captions[number % len(captions)])
            else:
                await client.encode_images(photos[number // 2 % len(photos)])
        except TeranError as failure:
            error = repr(failure)
        calls.append(Call(sent, time.monotonic() - sent, error))

    tasks: list[asyncio.Task[None]] = []
    started = due = time.monotonic()
    while due < started + seconds:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(len(tasks))))
        due += random.expovariate(rate)
    await asyncio.gather(*tasks)
    return calls


async def measure(
    service: Service,
    fault: Callable[[Service], None],
    captions: Sequence[str],
    rate: float,
    seconds: float,
) -> dict[str, Any]:
    """Let something fail in the middle of traffic, once."""
    registry = CollectorRegistry()
    async with AsyncTeranClient(service.server.url, metrics=ClientMetrics(registry)) as client:
        dim = (await client.info()).feature_dim
        await traffic(client, captions, dim, rate, _BEFORE)  # warm
        sending = asyncio.create_task(traffic(client, captions, dim, rate, _BEFORE + seconds))
        await asyncio.sleep(_BEFORE)
        failed = time.monotonic()
        await asyncio.get_running_loop().run_in_executor(service.worker, fault, service)
        calls = await sending
    usual = [one.seconds for one in calls if one.sent + one.seconds < failed]
    limit = max(OBJECTIVE, 2 * max(usual))
    troubled = [one.sent for one in calls if one.error or one.seconds > limit]
    repeated = sum(
        sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "teran_client_retries_total"
    )
    return {
        "recovered_after": round(max([0.0, *(one - failed for one in troubled)]), 2),
        "slowest": round(max(one.seconds for one in calls), 2),
        "requests": len(calls),
        "troubled": len(troubled),
        "repetitions": int(repeated),
        "lost": [one.error for one in calls if one.error],
    }


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several times the same: medians, the most, and all that was lost."""
    recovered = [one["recovered_after"] for one in rounds]
    return {
        "recovered_after_seconds": {"median": median(recovered), "most": max(recovered)},
        "slowest_answer_seconds": max(one["slowest"] for one in rounds),
        **{
            name: sum(one[name] for one in rounds)
            for name in ("requests", "troubled", "repetitions")
        },
        "lost": sum(len(one["lost"]) for one in rounds),
        "errors": sorted({error for one in rounds for error in one["lost"]}),
    }


def main() -> int:
    """Measure as the command line says; 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--captions", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--items", type=int, default=1000, help="images in the gallery")
    parser.add_argument("--rate", type=float, default=10, help="requests a second")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    captions = read_captions(options.captions)
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in FAULTS}
    with TemporaryDirectory() as folder:
        service = Service(options.repository, Path(folder))
        try:
            with TeranClient(service.server.url) as client:
                dim, generator = client.info().feature_dim, np.random.default_rng(0)
                photos = (picture(generator, dim) for _ in range(options.items))
                client.index([Entry(one, f"image-{i}") for i, one in enumerate(photos)])
            for number in range(options.rounds):
                for name, (fault, seconds) in FAULTS.items():
                    seen[name].append(
                        asyncio.run(measure(service, fault, captions, options.rate, seconds))
                    )
                    console.print(f"round {number + 1}:", name, seen[name][-1])
        finally:
            service.stop()
    results = {name: summary(rounds) for name, rounds in seen.items()}
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "troubled": f"no answer within {OBJECTIVE} s, or twice the longest time before the fault, "
        "repetitions included",
        "results": results,
    }
    path = options.out / "recovery.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("fault", "as before after s", "at most", "slowest answer s", "repeated", "lost")
    for name, one in results.items():
        recovered = one["recovered_after_seconds"]
        cells = (
            *recovered.values(),
            one["slowest_answer_seconds"],
            one["repetitions"],
            one["lost"],
        )
        table.add_row(name, *map(str, cells))
    console.print(table)
    console.print(f"written to {path}")
    return 1 if any(one["lost"] for one in results.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
