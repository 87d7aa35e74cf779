"""What `benchmarks.compare` runs with either tree's client: it imports nothing of the other.

compare_client.py fill URL IMAGES | probe URL CALLS CAPTIONS | teran TREE ARGUMENTS...
"""

import importlib.metadata
import json
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from teran_client import ImageRegions, TeranClient
from teran_client.gallery import _ids  # either tree takes records in its own form
from teran_client.protocol import infer_request
from tritonclient.grpc import service_pb2_grpc

REGIONS = 36


def fill(url: str, images: int) -> None:
    """Store random embeddings, but those that are there."""
    with TeranClient(url) as client:
        dim = client.info().embed_dim
        stored = {one["name"]: one["items"] for one in client.gallery_info()["galleries"]}
    random = np.random.default_rng(0)
    with grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for start in range(stored.get("default", 0), images, 32):
            rows = random.standard_normal((32, REGIONS, dim), np.float32)
            rows /= np.linalg.norm(rows, axis=2, keepdims=True)
            inputs = {"embeddings": rows, **_ids([f"{start + i}" for i in range(32)])}
            stub.ModelInfer(infer_request("gallery", inputs, ["report"]), timeout=60)


def probe(url: str, calls: dict[str, int], path: str) -> None:
    """Print the median milliseconds of every call."""
    sentences = [f"a man number {i} is riding a wave on top of a board" for i in range(90)]
    if path:
        annotations = json.loads(Path(path).read_text())["annotations"]
        sentences = [one["caption"].strip() for one in annotations[:20_000]]
    some = cycle(sentences)
    random = np.random.default_rng(0)
    corner = random.random((REGIONS, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.3], axis=1)
    with TeranClient(url, batch_size=32) as client:
        shape = (32, REGIONS, client.info().feature_dim)
        features = random.exponential(1.1, shape).astype(np.float32)
        images = [ImageRegions(one, boxes) for one in features]
        batches = cycle([sentences[i : i + 32] for i in range(0, len(sentences) - 32, 32)])
        what: dict[str, Callable[[], object]] = {
            "one caption": lambda: client.encode_captions(next(some)),
            "32 captions": lambda: client.encode_captions(next(batches)),
            "one image": lambda: client.encode_images(images[0]),
            "32 images": lambda: client.encode_images(images),
            "search": lambda: client.search(next(some), 10),
        }
        found = {}
        for name, count in calls.items():
            what[name]()
            times = []
            for _ in range(count):
                started = time.perf_counter()
                what[name]()
                times.append(1e3 * (time.perf_counter() - started))
            found[name] = round(median(times), 3)
    print(json.dumps(found))


def teran(tree: Path, arguments: list[str]) -> None:
    """A tree's own command, with the sub-commands of its own project file."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    group = "teran.commands"
    ours = [EntryPoint(name, to, group) for name, to in project["entry-points"][group].items()]
    installed = importlib.metadata.entry_points

    def entry_points(**wanted: Any) -> Any:
        return ours if wanted.get("group") == group else installed(**wanted)

    importlib.metadata.entry_points = entry_points
    from teran_client import cli

    cli.main(arguments)


if __name__ == "__main__":
    verb, url, *rest = sys.argv[1:]
    if verb == "teran":
        teran(Path(url), rest)
    elif verb == "fill":
        fill(url, int(rest[0]))
    else:
        probe(url, json.loads(rest[0]), rest[1])
