"""Mixed traffic for half an hour: does anything grow that should not?

Captions, searches, images, writes, deletions, snapshots, clients that come and go, and wrong
requests, all at once. After a warm-up, the least memory and the fewest descriptors that a process
holds must stay the same, no segment may be left, and the work done must stay the same.
"""

import argparse
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from teran_client import (
    Entry,
    ImageRegions,
    TeranClient,
    TeranError,
    TeranInputError,
    TeranOverloadedError,
)

from benchmarks import machine
from benchmarks.overload import read_captions
from teran.cli.background import BackgroundServer, background_server

WARM = 0.3
"""Of the time, until what is only allocated once is there."""
GROWTH = 0.02
"""Of its memory a process may gain after that."""
SLACK = 1 << 20
"""Bytes that a process may gain in any case: the heap's own hoarding."""
_ITEMS = 300
_REGIONS = range(10, 61)
_SHM = Path("/dev/shm")
console = Console()
T = TypeVar("T")
Work = Callable[[TeranClient], object]


@dataclass
class Sample:
    """What was there at one moment."""

    at: float
    memory: dict[str, float] = field(default_factory=dict)
    """Bytes of every process that are its own."""
    descriptors: dict[str, int] = field(default_factory=dict)
    segments: int = 0


@dataclass
class Soak:
    """What was seen."""

    seconds: float
    samples: list[Sample] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    rates: list[float] = field(default_factory=list)
    """Calls a second, from sample to sample."""
    errors: list[str] = field(default_factory=list)

    def findings(self, growth: float = GROWTH, slack: float = SLACK) -> list[str]:
        """What is wrong; empty if nothing is."""
        wrong = [f"error: {one}" for one in self.errors[:10]]
        first, last = self._ends()
        for name in last[-1].memory:
            before, after = (_floor(name, part) for part in (first, last))
            if after > before * (1 + growth) + slack:
                wrong.append(f"{name} grew from {before / 1e6:.1f} to {after / 1e6:.1f} MB")
            before = max(one.descriptors.get(name, 0) for one in first)
            after = min(one.descriptors[name] for one in last)
            if after > before:
                wrong.append(f"{name} has {after} descriptors, {before} before")
        segments = [max(one.segments for one in first), min(one.segments for one in last)]
        if segments[1] > segments[0]:
            wrong.append(f"{segments[1]} segments, {segments[0]} before")
        early, late = self.throughput()
        if late < 0.9 * early:
            wrong.append(f"{late:.1f} calls a second at the end, {early:.1f} before")
        return wrong

    def throughput(self) -> tuple[float, float]:
        """Calls a second after the warm-up, and at the end."""
        start, part = int(WARM * len(self.rates)), max(1, len(self.rates) // 4)
        return median(self.rates[start : start + part]), median(self.rates[-part:])

    def _ends(self) -> tuple[list[Sample], list[Sample]]:
        start, part = int(WARM * len(self.samples)), max(2, len(self.samples) // 5)
        return self.samples[start : start + part], self.samples[-part:]

    def _memory_mb(self, parts: Sequence[Sequence[Sample]]) -> dict[str, list[float]]:
        """Of every process that is there at the end, in each part."""
        return {
            name: [round(_floor(name, part) / 1e6, 1) for part in parts]
            for name in self.samples[-1].memory
        }

    def summary(self) -> dict[str, Any]:
        """Of everything that was seen, for a file."""
        first, last = self._ends()
        return {
            "seconds": round(self.seconds),
            "calls": dict(self.done),
            "calls_per_second": [round(one, 1) for one in self.throughput()],
            "calls_per_second_by_sixths": [
                round(median(part), 1) for part in _parts(self.rates, 6)
            ],
            "memory_mb": self._memory_mb([first, last]),
            "memory_mb_by_sixths": self._memory_mb(_parts(self.samples, 6)),
            "descriptors": {
                name: [part[-1].descriptors.get(name) for part in (first, last)]
                for name in last[-1].descriptors
            },
            "segments": [part[-1].segments for part in (first, last)],
        }


def _floor(name: str, samples: Sequence[Sample]) -> float:
    """What a process holds when it holds little; what is leaked lifts that.

    At other moments it has more, as while a gallery is restored.
    """
    values = [one.memory[name] for one in samples if name in one.memory]
    return float(np.percentile(values, 10))


def _parts(values: Sequence[T], count: int) -> list[Sequence[T]]:
    """So many equal parts."""
    size = max(1, len(values) // count)
    return [values[i * size : (i + 1) * size] for i in range(count)]


def picture(generator: np.random.Generator, dim: int, regions: int | None = None) -> ImageRegions:
    """A random image, of 10 to 60 regions unless told how many."""
    regions = regions or int(generator.choice(_REGIONS))
    corner = generator.random((regions, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32)
    return ImageRegions(generator.exponential(1.0, (regions, dim)).astype(np.float32), boxes)


def works(captions: Sequence[str], photos: Sequence[ImageRegions]) -> dict[str, Work]:
    """What clients do, by name."""

    def some(count: int) -> list[Entry]:
        # The same image every time: a gallery keeps room for as many items of a length as it had.
        numbers = random.sample(range(len(photos)), count)
        return [Entry(photos[i], f"image {i}", metadata={"n": i}) for i in numbers]

    def wrong(client: TeranClient) -> None:
        try:
            client.search("a dog", where={"n": {"between": [1, 2]}})
        except TeranInputError:
            return
        raise TeranError("a wrong filter was accepted")

    def come_and_go(client: TeranClient) -> None:
        with TeranClient(client._client._channel.url) as other:
            other.encode_images(random.sample(photos, 16))

    def snapshot(client: TeranClient) -> None:
        file = client.snapshot()
        client.restore(file, "copy")
        client.drop_gallery("copy")
        Path(file).unlink()
        time.sleep(2)

    return {
        "captions": lambda client: client.encode_captions(random.choice(captions)),
        "searches": lambda client: client.search(random.choice(captions), k=10),
        "filtered": lambda client: client.search(
            random.choice(captions), where={"n": {"lt": random.randrange(_ITEMS)}}, explain=True
        ),
        "searches by image": lambda client: client.search(random.choice(photos)),
        "matches": lambda client: client.match(random.choice(photos), random.choice(captions)),
        "writes": lambda client: client.index(some(8)),
        "deletions": lambda client: client.delete(f"image {random.randrange(_ITEMS)}"),
        "wrong": wrong,
        "clients": come_and_go,
        "snapshots": snapshot,
    }


def processes(server: BackgroundServer) -> Iterator[tuple[str, psutil.Process]]:
    """The server's processes, by what they run."""
    top = psutil.Process(server.process.pid)
    yield "supervisor", top
    for process in top.children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        models = [word.split("_0_")[0] for word in words if "_0_" in word and "/" not in word]
        yield (models[0] if models else process.name()), process


def look(server: BackgroundServer, at: float) -> Sample:
    """Take a sample."""
    sample = Sample(at)
    for name, process in processes(server):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            # Not what is mapped from files: how much of them is in memory, the kernel decides.
            (own,) = re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
            sample.memory[name] = 1024.0 * int(own)
            sample.descriptors[name] = process.num_fds()
        except (psutil.Error, OSError):
            continue
    sample.segments = len(list(_SHM.glob("teran*")))
    return sample


def soak(
    server: BackgroundServer,
    captions: Sequence[str],
    dim: int,
    seconds: float,
    period: float,
    without: Sequence[str] = (),
) -> Soak:
    """Send all kinds of requests for a while, and look every so many seconds.

    Args:
        server: where to.
        captions: what to ask.
        dim: of the images' features.
        seconds: how long.
        period: seconds between looks.
        without: kinds of requests to leave out.
    """
    result, over = Soak(seconds), threading.Event()

    def work(name: str, do: Work) -> None:
        with TeranClient(server.url, timeout=60) as client:
            while not over.is_set():
                try:
                    do(client)
                    result.done[name] += 1
                except TeranOverloadedError:
                    over.wait(1)
                except TeranError as error:
                    if "already" not in str(error) and "try again soon" not in str(error):
                        result.errors.append(f"{name}: {error}")
                        over.wait(1)
                over.wait(random.random() * 0.05)

    lengths = {len(caption.split()): caption for caption in captions}.values()
    with TeranClient(server.url, batch_size=8) as client:
        for regions in _REGIONS:  # an engine keeps something for every shape, up to a bound
            image = picture(np.random.default_rng(0), dim, regions)
            for count in range(1, 9):
                client.encode_images([image] * count)
            for caption in lengths:
                client.match(image, caption)
        photos = [picture(np.random.default_rng(i), dim) for i in range(_ITEMS)]
        doing = {k: v for k, v in works(captions, photos).items() if k not in without}
        doing["writes"](client)
        client.index(Entry(photo, f"image {i}") for i, photo in enumerate(photos))
    threads = [threading.Thread(target=work, args=pair) for pair in doing.items()]
    for thread in threads:
        thread.start()
    started = looked = time.monotonic()
    before = 0
    try:
        while time.monotonic() < started + seconds:
            time.sleep(period)
            now, count = time.monotonic(), sum(result.done.values())
            result.rates.append((count - before) / (now - looked))
            looked, before = now, count
            result.samples.append(look(server, now - started))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return result


@contextmanager
def served(repository: Path) -> Iterator[BackgroundServer]:
    """A server with a gallery of its own."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        flags = ("--gallery", str(folder / "gallery"))
        yield stack.enter_context(background_server(repository, *flags, log=folder / "log"))


def main() -> int:
    """Soak as the command line says; 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--captions", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=1800)
    options = parser.parse_args()

    with served(options.repository) as server:
        with TeranClient(server.url) as client:
            dim = client.info().feature_dim
        captions = read_captions(options.captions)
        seen = soak(server, captions, dim, options.seconds, max(2.0, options.seconds / 600))
    findings = seen.findings()
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "after": f"{WARM:.0%} of the time, against the end",
        **seen.summary(),
        "findings": findings,
    }
    path = options.out / "soak.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("process", "MB", "at the end", "descriptors", "at the end")
    for name, memory in result["memory_mb"].items():
        table.add_row(name, *map(str, memory), *map(str, result["descriptors"][name]))
    console.print(table)
    for one in findings:
        console.print(f"[red]{one}")
    console.print(f"{sum(seen.done.values())} calls; written to {path}")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
