"""Gallery search: our scan and its pruning against Qdrant's own exact MaxSim, and the floors.

Everything runs on one gallery on disk, in one process, taking turns, so that a slow spell of the
machine hits all of them alike.
"""

import argparse
import copy
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import machine
from examples.scenes.dataset import make_split
from examples.scenes.demo import MODEL as SCENES_MODEL
from examples.scenes.regions import find_regions
from teran.gallery.catalog import Model
from teran.gallery.embedded.gallery import EmbeddedGallery, create_gallery
from teran.gallery.item import Item
from teran.gallery.layout import VECTORS
from teran.gallery.search.kernels import Rows, RowType, kernel
from teran.gallery.search.kernels.base import to_bf16
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.search.query import Query
from teran.gallery.search.searcher import Searcher
from teran.model import TeranModel
from teran.runtime.environment import available_cores
from teran.tokenizer import CaptionTokenizer

REGIONS, WORDS, K = 36, 12, 10
DATA = ("random", "structured", "scenes")
console = Console()
Floats = npt.NDArray[np.float32]


def unit(values: npt.NDArray[Any]) -> Floats:
    """Normalised in the last axis."""
    result: Floats = values.astype(np.float32)
    result /= np.linalg.norm(result, axis=-1, keepdims=True)
    return result


class Vectors:
    """Random unit vectors: without structure, or around a low-dimensional set of topics."""

    def __init__(self, dim: int, *, structured: bool) -> None:
        self._random, self._dim = np.random.default_rng(0), dim
        self._topics = unit(self._random.standard_normal((400, 48)) @ self._axes()) * structured

    def _axes(self) -> npt.NDArray[Any]:
        return self._random.standard_normal((48, self._dim))

    def images(self, count: int) -> Iterator[Floats]:
        """Images (REGIONS, dim)."""
        for _ in range(count):
            yield self.draw(REGIONS)

    def draw(self, rows: int) -> Floats:
        """(rows, dim); with structure, near randomly chosen topics."""
        noise = self._random.standard_normal((rows, self._dim)) / np.sqrt(self._dim)
        chosen = self._topics[self._random.integers(len(self._topics), size=rows)]
        return unit(chosen + (0.4 if chosen.any() else 1) * noise)


def timed(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Milliseconds of every call, taking turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeat + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def read_bandwidth() -> float:
    """GB a second that all cores read from memory together."""
    block = np.ones(1 << 29, np.uint8).view(np.uint64)
    parts = np.array_split(block, available_cores())

    def run() -> None:
        threads = [threading.Thread(target=part.max) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return float(block.nbytes / median(timed({"read": run}, 7)["read"]) / 1e6)


def ceilings() -> dict[str, float]:
    """GOP/s of one large matmul: OpenVINO's fp32 and bf16, torch's int8."""
    found = {hint: machine.matmul_ceiling(hint) for hint in ("f32", "bf16")}
    torch.set_num_threads(available_cores())
    a = torch.randint(-127, 127, (1184, 2048), dtype=torch.int8)
    b = torch.randint(-127, 127, (2048, 2048), dtype=torch.int8)
    times = timed({"int8": lambda: torch._int_mm(a, b)}, 9)["int8"]
    found["int8"] = 2 * 1184 * 2048 * 2048 / median(times) / 1e6
    return {name: round(value, 1) for name, value in found.items()}


def build(directory: Path, images: Iterable[Floats], count: int, dim: int) -> int:
    """Write a gallery of images (R, dim), with its bounds fitted; how many regions it has."""
    model = Model("0" * 64, dim, "MrSw")
    create_gallery(directory, Kind.IMAGES, model)
    gallery = EmbeddedGallery(directory, directory.name, model, kernel())
    regions, waiting = 0, iter(images)
    for start in track(range(0, count, 64), f"storing {count} images", console=console):
        batch = [
            Item(f"{start + i}", one.astype(np.float16))
            for i, one in enumerate(islice(waiting, 64))
        ]
        gallery.write(batch, [])
        regions += sum(len(one.rows) for one in batch)
    gallery.fit()
    gallery.close()
    return regions


def measure(
    gallery: EmbeddedGallery, regions: int, queries: list[Floats], repeat: int, *, peer: bool
) -> dict[str, Any]:
    """Times, shares of the work, and recall of one gallery."""
    compact, pooling = gallery._compact, Pooling("MrSw", Kind.IMAGES)
    turn = iter(range(10**9))

    def rows() -> Floats:
        return queries[next(turn) % len(queries)]

    scanner, pruner = Searcher(pooling, kernel()), Searcher(pooling, kernel())
    without = _without_bounds(compact)
    bf16 = [
        Rows(to_bf16(chunk.exact_rows().float32(slice(None))), RowType.BF16)
        for chunk in compact.chunks
    ]

    def scan_bf16(count: int) -> None:
        lanes = pooling.lanes([rows() for _ in range(count)])
        for block in bf16:
            kernel().scores(block, lanes, clamp_rows=False)

    def ask_peer() -> None:
        nearest = edge.Query.Nearest(rows().tolist(), using=VECTORS)
        gallery.store._shard.query(edge.QueryRequest(query=nearest, limit=K))

    def scan_many(count: int) -> None:
        scanner.search(without, [Query(rows()) for _ in range(count)])

    calls: dict[str, Callable[[], object]] = {"scan int8, 1 queries": partial(scan_many, 1)}
    if compact.basis:
        calls["pruned, 1 query"] = lambda: pruner.search(compact, [Query(rows(), exact=True)])
    if peer:
        calls["qdrant-edge exact MaxSim, 1 query"] = ask_peer
    for count in (8, 64):
        calls[f"scan int8, {count} queries"] = partial(scan_many, count)
    for count in (1, 8, 64):
        calls[f"scan bf16, {count} queries"] = partial(scan_bf16, count)
    times = timed(calls, repeat)
    operations = 2 * regions * compact.chunks[0].rows().values.shape[2] * WORDS
    exact = [scanner.search(without, [Query(q, K, exact=True)])[0] for q in queries]
    scanned = [scanner.search(without, [Query(q, K)])[0] for q in queries]
    result: dict[str, Any] = {
        "images": len(gallery),
        "regions": regions,
        "dim": gallery.model.embed_dim,
        "p50_ms": {name: round(median(values), 2) for name, values in times.items()},
        "p95_ms": {name: round(quantiles(values, n=20)[-1], 2) for name, values in times.items()},
        "gop_per_second": {
            name: round(count * operations / median(times[name]) / 1e6, 1)
            for kind in ("int8", "bf16")
            for name, count in ((f"scan {kind}, {n} queries", n) for n in (1, 8, 64))
        },
        "recall_at_10": {
            "int8": _recall(exact, scanned),
            "bf16": _bf16_recall(bf16, compact, pooling, queries),
        },
        "scan_bytes": sum(chunk.rows().values.nbytes for chunk in compact.chunks),
        "bytes_per_image": {
            "memory": round(compact.memory_bytes() / len(gallery)),
            "disk": round(gallery.info()["bytes_on_disk"] / len(gallery)),
        },
    }
    if compact.basis:
        found = [pruner.search(compact, [Query(q, K, exact=True)])[0] for q in queries]
        result["recall_at_10"]["pruned"] = _recall(exact, found)
        result["pruned_share"] = round(median(one.pruned for one in found), 4)
        result["prefix_dims"] = compact.basis.length
    return result


def _without_bounds(compact: Any) -> Any:
    """The same copy, searched without its bounds."""
    other = copy.copy(compact)
    other.basis = None
    return other


def _recall(exact: list[Any], found: list[Any]) -> float:
    """Share of the exact results that were found, where equal scores count as equal."""
    kept = sum(
        len({round(hit.score, 5) for hit in a.hits} & {round(hit.score, 5) for hit in b.hits})
        for a, b in zip(exact, found, strict=True)
    )
    return kept / sum(len({round(hit.score, 5) for hit in a.hits}) for a in exact)


def _bf16_recall(rows: list[Rows], compact: Any, pooling: Pooling, queries: list[Floats]) -> float:
    """Recall of a bf16 scan whose best 4 k are scored again, as for int8."""

    def scores(blocks: list[Rows], query: Floats) -> Floats:
        lanes = pooling.lanes([query])
        return np.concatenate([kernel().scores(b, lanes, clamp_rows=False)[0] for b in blocks])

    kept = 0
    for query in queries:
        exact = scores([chunk.exact_rows() for chunk in compact.chunks], query)
        near = scores(rows, query)
        candidates = np.argsort(-near)[: 4 * K]
        again = candidates[np.argsort(-exact[candidates])[:K]]
        kept += len(set(again.tolist()) & set(np.argsort(-exact)[:K].tolist()))
    return kept / (K * len(queries))


def scenes(count: int) -> tuple[list[Floats], list[Floats], int]:
    """Real embeddings of the demo's model: images (R, dim), and captions as queries."""
    samples = make_split("train", count)
    model = TeranModel.from_pretrained(SCENES_MODEL)
    assert model.tokenizer is not None
    tokenizer, images = CaptionTokenizer(model.tokenizer), []
    with torch.inference_mode():
        for one in find_regions(samples):
            features, boxes = torch.from_numpy(one.features), torch.from_numpy(one.boxes)
            images.append(unit(model.encode_images(features[None], boxes[None])[0].numpy()))
        tokens = tokenizer.encode([one.captions[0].text for one in samples[:40]])
        words = model.encode_captions(
            torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
        ).numpy()
    queries = [one[mask] for one, mask in zip(words, tokens.word_mask, strict=True)]
    return images, queries, model.config.embed_dim


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--scenes", type=int, default=4_000)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="galleries go here")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--name", default="gallery", help="of the result file")
    options = parser.parse_args()

    root = options.work / "galleries"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    results: dict[str, Any] = {}
    for name in options.data:
        images: Iterable[Floats]
        if name == "scenes":
            images, queries, dim = scenes(options.scenes)
            count = options.scenes
        else:
            vectors = Vectors(1024, structured=name == "structured")
            images, dim, count = vectors.images(options.images), 1024, options.images
            queries = [vectors.draw(WORDS) for _ in range(40)]
        regions = build(root / name, images, count, dim)
        start = time.perf_counter()
        gallery = EmbeddedGallery(root / name, name, Model("0" * 64, dim, "MrSw"), kernel())
        ready = time.perf_counter() - start
        results[name] = measure(gallery, regions, queries, options.repeat, peer=True)
        results[name]["restart_to_ready_s"] = round(ready, 2)
        gallery.close()
        shutil.rmtree(root / name)
        console.print(name, results[name])
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "kernel": kernel().name,
        "read_gb_per_second": round(read_bandwidth(), 1),
        "matmul_ceiling_gop_per_second": ceilings(),
        "words": WORDS,
        "results": results,
    }
    path = options.out / f"{options.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
