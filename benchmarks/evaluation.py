"""How long an evaluation at the size of COCO 5K takes: packing, reading, scoring, grading.

Features and embeddings are random, captions are COCO's as they come: 5,000 images of 36 regions,
five captions each. Scores are held against the machine's own matrix products in the same run.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from teran_client import TeranClient
from teran_research.evaluate import evaluate, folds_of
from teran_research.roads import ServerRoad

from benchmarks import machine
from teran.cli.background import background_server
from teran.evaluation.data import Split, open_regions, read_split
from teran.evaluation.data.layout import BOXES, FEATURES
from teran.evaluation.data.packed import pack
from teran.evaluation.protocol import Fold, Report
from teran.evaluation.rouge import relevance
from teran.evaluation.scoring import score_all

REGIONS, WIDTH, EMBEDDING = 36, 2048, 1024
SIZE = (640, 480)
AUTHORS_CAPTION, AUTHORS_STEP = 0.023, 1.82
"""Seconds that the authors' code takes, measured on another machine of two cores: one caption with
a thousand images, and five captions padded to 88 word pieces with a thousand images, which is a
step of their evaluation."""
console = Console()


def read_captions(path: Path, images: int) -> Split:
    """The first images of COCO's file of captions that have five or more."""
    captions: dict[int, list[str]] = {}
    for one in json.loads(path.read_text())["annotations"]:
        captions.setdefault(one["image_id"], []).append(one["caption"])
    described = [(str(i), several[:5]) for i, several in captions.items() if len(several) >= 5]
    return Split.of("coco", "test", described[:images])


def write_layout(root: Path, split: Split) -> None:
    """Write a data set as COCO lies on the authors' disks, with random regions."""
    annotations = root / "annotations"
    annotations.mkdir(parents=True)
    images = [{"id": int(i), "width": SIZE[0], "height": SIZE[1]} for i in split.image_ids]
    said = [
        {"id": place, "image_id": int(split.image_ids[image]), "caption": caption}
        for place, (image, caption) in enumerate(zip(split.owner, split.captions, strict=True))
    ]
    (annotations / "captions_val2014.json").write_text(
        json.dumps({"images": images, "annotations": said})
    )
    np.save(annotations / "coco_test_ids.npy", np.arange(len(said)))
    random = np.random.default_rng(0)
    for folder in (FEATURES, BOXES):
        (root / "features_36" / folder).mkdir(parents=True)
    for image in track(split.image_ids, "writing random features", console=console, transient=True):
        features = random.random((REGIONS, WIDTH), np.float32)
        corners = np.sort(random.random((REGIONS, 2, 2)), axis=1).reshape(REGIONS, 4)
        np.savez(root / "features_36" / FEATURES / f"{image}.npz", feat=features)
        np.save(root / "features_36" / BOXES / f"{image}.npy", corners * [*SIZE, *SIZE])


def seconds(call: Callable[[], object]) -> float:
    """How long it takes."""
    started = perf_counter()
    call()
    return perf_counter() - started


def measure_data(work: Path, split: Split) -> dict[str, float]:
    """Gigabytes a second: out of small files into packed ones, and out of each again."""
    gigabytes = len(split.image_ids) * REGIONS * (WIDTH + 4) * 4 / 1e9
    layout, packed = work / "layout", work / "packed"
    write_layout(layout, split)
    source = open_regions(layout)

    def read(directory: Path) -> None:
        opened = open_regions(directory)
        for image in split.image_ids:
            opened.read(image).features.sum()

    def whole_files() -> None:
        for file in sorted(packed.glob("*.npy")):
            file.read_bytes()

    return {
        "gigabytes": round(gigabytes, 2),
        "packed_gb_s": round(gigabytes / seconds(lambda: pack(source, split.image_ids, packed)), 2),
        "small_files_read_gb_s": round(gigabytes / seconds(lambda: read(layout)), 2),
        "packed_read_gb_s": round(gigabytes / seconds(lambda: read(packed)), 2),
        "whole_files_read_gb_s": round(gigabytes / seconds(whole_files), 2),
    }


def normalised(random: np.random.Generator, counts: list[int]) -> list[npt.NDArray[np.float32]]:
    """Random embeddings of so many rows each."""
    rows = random.standard_normal((sum(counts), EMBEDDING), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return list(np.split(rows, np.cumsum(counts)[:-1]))


def matmul_speed(repeats: int = 60) -> float:
    """Billions of operations a second of large products in fp32, one on each core."""
    size, cores = 2048, len(os.sched_getaffinity(0))
    pairs = [(torch.rand(size, size), torch.rand(size, size)) for _ in range(cores)]
    torch.set_num_threads(1)

    def run(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
        for _ in range(repeats):
            torch.mm(*pair)

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(run, pairs))  # once to warm up
        taken = seconds(lambda: list(pool.map(run, pairs)))
    return cores * repeats * 2 * size**3 / taken / 1e9


def measure_scoring(split: Split) -> dict[str, float]:
    """Seconds to score, rank and grade everything; words are counted by spaces."""
    random = np.random.default_rng(0)
    lengths = [len(caption.split()) for caption in split.captions]
    images, captions = len(split.image_ids), len(split.captions)
    regions, words = normalised(random, [REGIONS] * images), normalised(random, lengths)
    speed = [matmul_speed()]
    with console.status("scoring all pairs"):
        started = perf_counter()
        scores = score_all(regions, words)
        scored = perf_counter() - started
    speed.append(matmul_speed())
    operations = 2 * images * REGIONS * sum(lengths) * EMBEDDING / 1e9
    floor = operations / max(speed)
    with console.status("grading"):
        started = perf_counter()
        grades = np.concatenate(list(relevance(split.captions, split.owner, images)))
        graded = perf_counter() - started
        started = perf_counter()
        Report.of([Fold.of(scores, split.owner, {"rouge_l": grades})])
        ranked = perf_counter() - started
    thousand = images / 1000
    return {
        "words_a_caption": round(sum(lengths) / captions, 2),
        "scored_s": round(scored, 1),
        "floor_s": round(floor, 1),
        "times_the_floor": round(scored / floor, 2),
        "matmul_gflops": round(max(speed), 1),
        "rouge_l_s": round(graded, 1),
        "ranks_and_ndcg_s": round(ranked, 1),
        "authors_one_by_one_s": round(AUTHORS_CAPTION * captions * thousand),
        "authors_padded_s": round(AUTHORS_STEP * captions / 5 * thousand),
    }


def measure_whole(work: Path, repository: Path) -> dict[str, float]:
    """Seconds of an evaluation of the packed set through a server."""
    root = work / "packed"
    shutil.copytree(work / "layout" / "annotations", root / "annotations")
    split = read_split(root, "coco", "test")
    folds = folds_of(split, "5k")
    with (
        background_server(repository, "--gallery", str(work / "gallery")) as server,
        TeranClient(server.url) as client,
    ):
        road, source = ServerRoad(client), open_regions(root)

        whole = seconds(lambda: Report.of(evaluate(folds, [{}], source, road, work / "cache")))
    return {"seconds": round(whole, 1)}


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--captions", type=Path, required=True, help="COCO's file of captions")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--repository", type=Path, help="evaluate what it serves, too")
    options = parser.parse_args()
    split = read_captions(options.captions, options.images)
    results: dict[str, Any] = {"images": len(split.image_ids), "captions": len(split.captions)}
    work = Path(tempfile.mkdtemp(prefix="evaluation-", dir="build"))
    try:
        results["data"] = measure_data(work, split)
        if options.repository:
            results["whole"] = measure_whole(work, options.repository)
    finally:
        shutil.rmtree(work)
    results["scores"] = measure_scoring(split)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "results": results,
    }
    path = options.out / "evaluation.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print_json(data=results)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
