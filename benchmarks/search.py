"""Caption string to the best ten of many images, through gRPC: one client, and several at once.

Captions are COCO's as they come; the images are random embeddings, which no bound helps to search.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from teran_client import TeranClient
from teran_client.protocol import Arrays, infer_request

from benchmarks import machine
from benchmarks.gallery import REGIONS, K, Vectors
from benchmarks.overload import read_captions
from benchmarks.soak import picture
from teran.cli.background import background_server
from teran.contract import pack_texts
from teran.supervisor.canary import connect

CLIENTS = (1, 8)
_BATCH = 32
_INDEXED = 64
"""Images whose indexing is timed."""
console = Console()


def fill(url: str, images: int, dim: int) -> None:
    """Store random embeddings."""
    vectors, (host, port) = Vectors(dim, structured=False), url.split(":")
    channel, stub = connect(host, int(port))
    for start in track(range(0, images, _BATCH), f"storing {images} images", console=console):
        rows = vectors.draw(_BATCH * REGIONS).reshape(_BATCH, REGIONS, dim)
        records = [json.dumps({"id": f"{start + i}"}).encode() for i in range(_BATCH)]
        inputs: Arrays = {"embeddings": rows, "record": pack_texts(records)}
        stub.ModelInfer(infer_request("gallery", inputs, ["report"]), timeout=60)
    channel.close()


def search(url: str, captions: Sequence[str], clients: int, seconds: float) -> dict[str, Any]:
    """So many clients search for a while, each for one caption after the other."""
    times: list[float] = []

    def work(first: int) -> None:
        with TeranClient(url) as client:
            client.search(captions[first], K)
            end, number = time.perf_counter() + seconds, first
            while (start := time.perf_counter()) < end:
                client.search(captions[number % len(captions)], K)
                times.append(1e3 * (time.perf_counter() - start))
                number += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))  # which raises what one of them does
    return {
        "p50_ms": round(median(times), 1),
        "p95_ms": round(quantiles(times, n=20)[-1], 1),
        "searches_per_second": round(len(times) / seconds, 1),
    }


def index(url: str, dim: int) -> float:
    """Images of 36 regions that are encoded and indexed in a second."""
    generator = np.random.default_rng(0)
    photos = [picture(generator, dim, REGIONS) for _ in range(_INDEXED)]
    with TeranClient(url) as client:
        client.index(photos[:8], gallery="others")
        start = time.perf_counter()
        client.index(photos, gallery="others")
        return round(_INDEXED / (time.perf_counter() - start), 1)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, required=True, help="from `teran export`")
    parser.add_argument("--captions", type=Path, help="COCO's annotations of captions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30, help="of each number of clients")
    options = parser.parse_args()

    captions = read_captions(options.captions)
    with (
        TemporaryDirectory() as folder,
        background_server(options.repository, "--gallery", folder) as server,
    ):
        with TeranClient(server.url) as client:
            sizes = client.info()
        fill(server.url, options.images, sizes.embed_dim)
        results: dict[str, Any] = {"images": options.images}
        for clients in CLIENTS:
            results[f"{clients} clients"] = search(server.url, captions, clients, options.seconds)
        results["indexed_per_second"] = index(server.url, sizes.feature_dim)
    console.print(results)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "results": results,
    }
    path = options.out / "search.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
