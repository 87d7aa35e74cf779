"""How long a photo takes, from a file to region embeddings: by stage, and against PyTorch as it is.

The server's stages are what Triton counts of each model. PyTorch runs the same detector without an
engine, in fp32, photo by photo in turns with the server; its pooling of regions is ours, and told
apart, as a library's would be quicker.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tritonclient.grpc as triton
from rich.console import Console
from rich.table import Table
from teran_client import TeranClient
from teran_client.photos import find_photos

from benchmarks import machine
from teran.cli.background import background_server
from teran.detector import RegionDetector
from teran.detector.decode import decode
from teran.detector.photo import prepared, scale_of
from teran.detector.pooling import roi_pool
from teran.detector.proposals import propose
from teran.detector.regions import choose

STAGES = (
    "photo", "proposal_network", "proposals", "region_network", "regions", "visual_encoder",
)  # fmt: skip
Seconds = dict[str, float]
console = Console()


def counts(connection: triton.InferenceServerClient) -> Seconds:
    """Seconds that each stage has computed, ever."""
    statistics_ = connection.get_inference_statistics(as_json=True)["model_stats"]
    return {
        one["name"]: int(one["inference_stats"].get("compute_infer", {}).get("ns", 0)) / 1e9
        for one in statistics_
        if one["name"] in STAGES
    }


def by_stage(client: TeranClient, url: str, photos: Sequence[Path]) -> tuple[list[float], Seconds]:
    """Seconds of every photo, one after the other, and the mean of each stage."""
    connection = triton.InferenceServerClient(url)
    before, times = counts(connection), []
    for photo in photos:
        started = time.perf_counter()
        client.encode_images(photo)
        times.append(time.perf_counter() - started)
    after = counts(connection)
    return times, {name: (after[name] - before[name]) / len(photos) for name in STAGES}


def rate(url: str, photos: Sequence[Path], clients: int) -> float:
    """Photos a second with so many clients, each of which sends all of them."""

    def encode(number: int) -> None:
        with TeranClient(url, timeout=600, in_flight=1) as client:
            start = number * len(photos) // clients
            client.encode_images([*photos[start:], *photos[:start]])

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(encode, range(clients)))
    return clients * len(photos) / (time.perf_counter() - started)


@torch.inference_mode()
def eager(detector: RegionDetector, photo: Path) -> Seconds:
    """Seconds of PyTorch's stages."""
    marks = [time.perf_counter()]

    def mark(value: Any) -> Any:
        marks.append(time.perf_counter())
        return value

    pixels = decode(photo.read_bytes())
    size = (pixels.shape[0], pixels.shape[1])
    scale = scale_of(size, detector.config)
    inputs = mark(torch.from_numpy(prepared(pixels, scale))[None])
    res4, objectness, deltas = mark(detector.proposal_network(inputs))
    bases = detector.anchors.numpy()
    boxes = mark(propose(objectness[0].numpy(), deltas[0].numpy(), bases, size, detector.config))
    cells = mark(roi_pool(res4, torch.from_numpy(boxes)[None]))
    features, classes = mark(detector.region_network(cells))
    mark(choose(features.numpy(), classes.numpy(), boxes / scale, detector.config))
    names = ("photo", "proposal_network", "proposals", "pooling", "region_network", "regions")
    return {name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}


def main() -> None:
    """Measure, show, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=Path("build/photos"))
    parser.add_argument("--detector", type=Path, default=Path("build/detector"))
    parser.add_argument("--photos", type=Path, required=True, help="a directory of them")
    parser.add_argument("--rounds", type=int, default=3, help="of all photos on the server")
    parser.add_argument("--eager", type=int, default=3, help="photos that PyTorch does")
    parser.add_argument("--name", default="photos")
    options = parser.parse_args()
    photos = find_photos(options.photos, recursive=True)
    detector = RegionDetector.from_pretrained(options.detector)
    manifest = json.loads((options.repository / "manifest.json").read_text())
    served: list[float] = []
    stages: list[Seconds] = []
    plain: list[Seconds] = []
    with (
        TemporaryDirectory() as folder,
        background_server(options.repository, "--gallery", folder) as server,
        TeranClient(server.url, timeout=600) as client,
    ):
        client.encode_images(list(photos))  # each of the shapes once
        for turn in range(options.rounds):
            times, means = by_stage(client, server.url, photos)
            served += times
            stages.append(means)
            few = photos[turn :: options.rounds][: -(-options.eager // options.rounds)]
            plain += [eager(detector, photo) for photo in few]
        rates = {str(clients): rate(server.url, photos, clients) for clients in (1, 8)}
    names = [*STAGES, "pooling"]
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "photos": len(photos),
        "engine": manifest["request"]["engine"],
        "precision": manifest["detector"]["precision"],
        "proposals": manifest["detector"]["config"]["proposals"],
        "weights": "random",
        "served_seconds": {
            "median": round(statistics.median(served), 3),
            "longest": round(max(served), 3),
        },
        "stages_seconds": {
            name: round(statistics.median(one[name] for one in stages), 4) for name in STAGES
        },
        "photos_a_second": {clients: round(value, 3) for clients, value in rates.items()},
        "eager_seconds": {
            name: round(statistics.median(one[name] for one in plain), 4)
            for name in names
            if name in plain[0]
        },
    }
    whole = sum(result["eager_seconds"].values())
    detecting = result["served_seconds"]["median"] - result["stages_seconds"]["visual_encoder"]
    result["times_as_fast"] = round(whole / detecting, 2)
    without = whole - result["eager_seconds"]["pooling"]
    result["times_as_fast_without_its_pooling"] = round(without / detecting, 2)
    show(result)
    path = Path(__file__).parent / "results" / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to benchmarks/results/{path.name}")


def show(result: dict[str, Any]) -> None:
    """Print the stages side by side."""
    table = Table("stage", "served, s", "PyTorch, s")
    for name in (*STAGES, "pooling"):
        cells = (result[key].get(name) for key in ("stages_seconds", "eager_seconds"))
        table.add_row(name, *("" if one is None else f"{one:.3f}" for one in cells))
    console.print(table)
    console.print(
        f"{result['served_seconds']['median']:.2f} s a photo, {result['photos_a_second']} photos a "
        f"second; {result['times_as_fast']} times as fast as PyTorch, "
        f"{result['times_as_fast_without_its_pooling']} without its pooling"
    )


if __name__ == "__main__":
    main()
