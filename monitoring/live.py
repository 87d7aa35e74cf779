"""A server under load with Prometheus beside it, on this host, for a while: `make monitor`."""

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from teran_client import ImageRegions, TeranClient
from teran_export import ExportOptions, export

from examples.scenes.dataset import make_split
from examples.scenes.demo import MODEL
from examples.scenes.regions import find_regions
from monitoring.load import MixedLoad
from monitoring.local import Prometheus, addresses, find_prometheus, prometheus
from teran.cli.background import background_server
from teran.errors import TeranError
from teran.supervisor.status import render, watch

WORK = Path("build/monitor")
SENTENCES = ("two dogs run on a beach", "a red ball left of a blue box", "a man rides a wave")
_WARM_UP = 5.0
"""Seconds a picture leaves out: rates need some."""
console = Console()


def main() -> int:
    """Run as the command line says; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m monitoring.live --repository build/repository --seconds 600",
    )
    parser.add_argument("--repository", type=Path, help="by default the demo's model, exported")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: 60)")
    parser.add_argument("--clients", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--picture", type=Path, help="draw the dashboard's panels into this PNG")
    options = parser.parse_args()
    try:
        find_prometheus()
        _run(options.repository, options.seconds, options.clients, options.picture)
    except TeranError as error:
        console.print(f"[bold red]error:[/] {error}")
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    console.print("server and Prometheus are stopped")
    return 0


def _run(repository: Path | None, seconds: float, clients: int, picture: Path | None) -> None:
    images: Sequence[ImageRegions] = []
    captions: Sequence[str] = SENTENCES
    if repository is None:
        console.print("exporting the demo's model")
        repository = export(ExportOptions(MODEL, WORK / "repository", "openvino", "fp32")).path
        samples = make_split("test", 300)
        images = find_regions(samples)
        captions = [sample.captions[0].text for sample in samples]
    for name in ("gallery", "prometheus"):
        shutil.rmtree(WORK / name, ignore_errors=True)
    WORK.mkdir(parents=True, exist_ok=True)
    log = WORK / "server.log"
    with ExitStack() as stack:
        console.print(f"starting the server, which logs to {log}")
        gallery = ("--gallery", str(WORK / "gallery"))
        server = stack.enter_context(background_server(repository, *gallery, log=log))
        watcher = stack.enter_context(prometheus(WORK / "prometheus", *addresses(server)))
        urls = {
            "Prometheus": watcher.url,
            "its alerts": f"{watcher.url}/alerts",
            "Triton's metrics": server.metrics_url,
            "our metrics": server.health_url.replace("/health/ready", "/metrics"),
            "readiness": server.health_url,
        }
        for name, url in urls.items():
            console.print(f"  {name:18}{url}", highlight=False)
        console.print(
            "windows of rules are seconds here, not minutes; Ctrl-C ends it before its time"
        )
        if not images:
            with TeranClient(server.url) as client:
                images = list(_random_images(client.info().feature_dim))
        loads = []
        for _ in range(clients):
            loads.append(MixedLoad(server.url, images, captions))
            stack.callback(loads[-1].close)
        started = time.time()
        with contextlib.suppress(KeyboardInterrupt):
            _show(watcher, [urls["Triton's metrics"], urls["our metrics"]], loads, seconds)
        _sum_up(watcher, loads, time.time() - started)
        if picture:
            from monitoring.picture import draw

            moment = datetime.now(UTC).isoformat(timespec="minutes")
            title = (
                f"The dashboard's panels, drawn by `make monitor` ({moment}): "
                f"the demo's model under {clients} clients; windows of seconds, not minutes"
            )
            end = time.time()
            draw(watcher, min(started + _WARM_UP, end - 2), end, picture, title)
            console.print(f"drawn: {picture}")


def _random_images(feature_dim: int) -> Iterator[ImageRegions]:
    random = np.random.default_rng(0)
    for i in range(100):
        corner = random.random((36, 2)) * 0.5
        boxes = np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32)
        yield ImageRegions(
            random.exponential(1, (36, feature_dim)).astype(np.float32), boxes, f"{i}"
        )


def _show(
    watcher: Prometheus, urls: Sequence[str], loads: Sequence[MixedLoad], seconds: float
) -> None:
    """Show what happens until the time is over."""
    end = time.monotonic() + seconds
    with Live(console=console, auto_refresh=False) as live:
        for status in watch(*urls, interval=1.0):
            left = max(end - time.monotonic(), 0)
            alerts = ", ".join(sorted(watcher.firing())) or "none"
            foot = Text(f"alerts that fire: {alerts}    {left:.0f} s left")
            live.update(Group(render(status), foot, ""), refresh=True)
            for load in loads:
                if load.error:
                    raise load.error
            if not left:
                return


def _sum_up(watcher: Prometheus, loads: Sequence[MixedLoad], seconds: float) -> None:
    window = f"[{max(int(seconds), 5)}s]"
    shown = {
        "searches": f"sum(increase(teran_searches_total{window}))",
        "items written": f"sum(increase(teran_gallery_upserts_total{window}))",
        "requests not answered": f"sum(increase(teran_failed_requests_total{window}))",
    }
    console.print(f"in {seconds:.0f} s, {sum(load.rounds for load in loads)} rounds of the load:")
    for name, expression in shown.items():
        found = watcher.query(expression)
        value = float(found[0]["value"][1]) if found else 0.0
        console.print(f"  {name:24}{value:,.0f}")
    rows = watcher.query(
        f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}{window}))'
    )
    fired = sorted(one["metric"]["alertname"] for one in rows)
    console.print(f"  {'alerts that fired':24}{', '.join(fired) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
