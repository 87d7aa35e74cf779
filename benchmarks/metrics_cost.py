"""What recording and scraping metrics costs: servers with and without `--no-metrics`, in turns.

Two servers without tell how much of a difference is chance.
The demo's model is so small that little but the serving is left: with a larger one the share is
smaller. Searches are what records most values.
"""

import argparse
import asyncio
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track
from teran_client import AsyncTeranClient, Entry, TeranClient
from teran_export import ExportOptions, export

from benchmarks import machine
from examples.scenes.dataset import make_split
from examples.scenes.demo import MODEL
from examples.scenes.regions import find_regions
from teran.cli.background import BackgroundServer, background_server

CONCURRENCY = 8
ON, OFF, CONTROL = "metrics on", "metrics off", "metrics off, again"
VARIANTS: dict[str, tuple[str, ...]] = {
    ON: (), OFF: ("--no-metrics",), CONTROL: ("--no-metrics",)
}  # fmt: skip
console = Console()


@contextmanager
def scraped(server: BackgroundServer, every: float) -> Iterator[None]:
    """Read both addresses from time to time, as Prometheus does."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(every):
            for url in (server.metrics_url, server.health_url.replace("health/ready", "metrics")):
                with urllib.request.urlopen(url, timeout=10) as answer:
                    answer.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


async def throughput(url: str, captions: list[str], seconds: float) -> float:
    """Searches a second of several callers at once."""
    count = 0
    async with AsyncTeranClient(url) as client:
        await client.search(captions[0])
        started = time.perf_counter()

        async def call(first: int) -> None:
            nonlocal count
            i = first
            while time.perf_counter() - started < seconds:
                await client.search(captions[i % len(captions)])
                i += CONCURRENCY
                count += 1

        await asyncio.gather(*(call(i) for i in range(CONCURRENCY)))
        return count / (time.perf_counter() - started)


def singles_ms(urls: dict[str, str], captions: list[str], calls: int) -> dict[str, list[float]]:
    """Times of single searches, the servers taking turns from call to call."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(TeranClient(url)) for name, url in urls.items()}
        for i in range(calls + 50):
            for name in list(clients) if i % 2 else list(clients)[::-1]:
                started = time.perf_counter()
                clients[name].search(captions[i % len(captions)])
                if i >= 50:
                    times[name].append(1e3 * (time.perf_counter() - started))
    return times


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=6, help="each with fresh servers")
    parser.add_argument("--singles", type=int, default=1000, help="searches a server and block")
    parser.add_argument("--rounds", type=int, default=12, help="of throughput a block")
    parser.add_argument("--seconds", type=float, default=1.5, help="of throughput a turn")
    parser.add_argument("--scrape", type=float, default=1, help="seconds between scrapes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    samples = make_split("test", 300)
    captions = [caption.text for sample in samples for caption in sample.captions]
    entries = [Entry(image, image.name) for image in find_regions(samples)]
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    singles: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "repository"
        repository = export(ExportOptions(MODEL, out, "openvino", "fp32")).path
        for block in track(range(options.blocks), "blocks", console=console):
            names = list(VARIANTS)
            names = names[block % 3 :] + names[: block % 3]
            with ExitStack() as stack:
                servers = {}
                for name in names:
                    gallery = ("--gallery", f"{folder}/{name}{block}", "--check-interval", "60")
                    log = Path(folder) / "log"
                    server = background_server(repository, *gallery, *VARIANTS[name], log=log)
                    servers[name] = stack.enter_context(server)
                    with TeranClient(servers[name].url) as client:
                        client.index(entries)
                urls = {name: server.url for name, server in servers.items()}
                for name, times in singles_ms(urls, captions, options.singles).items():
                    singles[name] += times
                for i in range(options.rounds + 1):
                    for name in names if i % 2 else names[::-1]:
                        with ExitStack() as turn:
                            if name == ON:
                                turn.enter_context(scraped(servers[name], options.scrape))
                            rate = asyncio.run(throughput(urls[name], captions, options.seconds))
                        if i:  # the first round warms up
                            rates[name].append(rate)
    p50 = {name: median(values) for name, values in singles.items()}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "blocks": options.blocks,
        "single_searches": {
            "each": len(singles[ON]),
            "p50_ms": {name: round(value, 3) for name, value in p50.items()},
            "ratio_to_off": {name: round(p50[name] / p50[OFF], 4) for name in (ON, CONTROL)},
        },
        "throughput": {
            "callers": CONCURRENCY,
            "turns": len(rates[ON]),
            "searches_per_second": {name: round(median(v), 1) for name, v in rates.items()},
            "ratio_to_off": {name: _ratio(rates[name], rates[OFF]) for name in (ON, CONTROL)},
        },
    }
    path = options.out / "metrics_cost.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(report)


def _ratio(values: list[float], to: list[float]) -> dict[str, object]:
    """The ratio in every round: its median and quartiles."""
    ratios = sorted(a / b for a, b in zip(values, to, strict=True))
    quartiles = [round(ratios[len(ratios) * q // 4], 4) for q in (1, 3)]
    return {"median": round(median(ratios), 4), "quartiles": quartiles}


if __name__ == "__main__":
    main()
