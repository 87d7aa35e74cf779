"""The demo: export, serve, send 1,000 unseen pictures over gRPC, search them, show the results."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from teran_client import Entry, Photo, Ranked, TeranClient
from teran_export import ExportOptions, Published, export
from teran_export.options import AUTO

from benchmarks import machine
from examples.scenes.captions import Caption
from examples.scenes.dataset import Sample, make_contrast_pairs, make_pngs, make_split
from examples.scenes.judge import contrast_hits, noun_hits, object_hits
from examples.scenes.regions import DETECTOR, find_regions
from examples.scenes.report import Query, write_report
from examples.scenes.train import as_pairs, build_tokenizer
from teran.cli.background import background_server
from teran.evaluation.retrieval import Recall, caption_ranks

MODEL = Path(__file__).parent / "model"
GALLERY = "scenes"
JUDGED = 200
"""Scenes whose regions, words and sentences are looked at one by one."""
QUERIES = (
    "a big red heart above a small blue star",
    "two green rings and a striped purple box",
    "a dotted yellow ball to the left of a white moon",
    "a pink triangle and an orange cross with a small striped star",
)
console = Console()
Result = TypeVar("Result")


@dataclass(frozen=True)
class Drawn:
    """A scene, and its picture in a file."""

    sample: Sample
    photo: Photo


@dataclass(frozen=True)
class Findings:
    """Everything the demo measured, through the server; parts in percent."""

    image_r1: float
    """Captions whose picture is first in the gallery's ranking of all; it came as PNG bytes."""
    image_r5: float
    image_r10: float
    sentences: Recall
    """Recall of the judged scenes' captions, among themselves."""
    contrast: float
    """Captions that prefer their picture to one of a scene that differs in one attribute."""
    nouns: float
    """Nouns of the judged scenes whose best region is of an object they may mean."""
    objects: float
    """Objects of the judged scenes that a region overlaps with an IoU of at least 0.5."""
    photos_per_second: float
    """From PNG bytes to regions."""
    images_per_second: float
    """From regions to embeddings."""
    captions_per_second: float
    indexed_per_second: float
    """From PNG bytes to a durable gallery."""
    searches_per_second: float
    caption_ms: float
    search_ms: float
    match_ms: float
    precisions: str
    """Of the detector and the encoders."""
    scenes: int
    judged: int
    pairs: int


def write_calibration(path: Path, detector: Path = DETECTOR, scenes: int = 100) -> None:
    """Write what a detector finds in scenes of the validation split, with their captions."""
    samples = make_split("val", scenes)
    pairs = as_pairs(samples, find_regions(samples, detector), build_tokenizer())
    batch = pairs.images(range(scenes))
    captions = [caption.text for sample in samples for caption in sample.captions]
    np.savez(
        path,
        region_features=batch.features,
        boxes=batch.boxes,
        region_mask=batch.mask,
        captions=np.array(captions),
        image_of_caption=np.repeat(np.arange(len(samples)), len(captions) // len(samples)),
    )


def write_photos(directory: Path, scenes: int = 16) -> None:
    """Write pictures of the validation split: the detector is calibrated on them, and judged."""
    directory.mkdir()
    for i, png in enumerate(make_pngs(make_split("val", scenes))):
        (directory / f"{i:03d}.png").write_bytes(png)


def publish(
    out: Path, bundle: Path = MODEL, detector: Path = DETECTOR, precision: str = AUTO
) -> Published:
    """Export detector and encoders into a repository, calibrated on the validation split.

    Args:
        out: a directory; the repository is made in it.
        bundle: the model.
        detector: what finds the regions.
        precision: of both; by default the fastest that passes the gate.
    """
    calibration, photos = out / "calibration.npz", out / "photos"
    shutil.rmtree(photos, ignore_errors=True)  # of another run
    write_calibration(calibration, detector)
    write_photos(photos)
    options = ExportOptions(
        bundle,
        out / "repository",
        precision=precision,
        calibration=calibration,
        detector=detector,
        photos=photos,
    )
    return export(options, console.print)


def drawn(samples: Sequence[Sample], noun: str) -> list[Drawn]:
    """Draw samples into files in memory, each called by the noun and its number."""
    pngs = make_pngs(samples, f"{noun}s")
    return [
        Drawn(sample, Photo(png, f"{noun} {i}"))
        for i, (sample, png) in enumerate(zip(samples, pngs, strict=True))
    ]


def measure(
    client: TeranClient, scenes: Sequence[Drawn], pairs: Sequence[Drawn], precisions: str
) -> Findings:
    """Index, search, detect, encode, score and judge."""
    photos = [one.photo for one in scenes]
    captions, owner = sentences(scenes)
    started = time.perf_counter()
    entries = (Entry(photo, photo.name) for photo in photos)
    ids = watched(client.index(entries, gallery=GALLERY), "indexing pictures", len(photos))
    indexed = time.perf_counter()
    console.print(f"indexed {len(ids)} pictures, from their bytes")
    started_search = time.perf_counter()
    results = client.search(captions, k=10, gallery=GALLERY)
    searched = time.perf_counter()
    console.print(f"searched them for {len(results)} captions")
    hits = np.array(
        [[hit.id == photos[i].name for hit in r] for r, i in zip(results, owner, strict=True)]
    )

    judged = scenes[:JUDGED]
    captions, owner = sentences(judged)
    started_detection = time.perf_counter()
    detections = client.detect(one.photo for one in judged)
    images = [one.regions for one in watched(detections, "detecting regions", len(judged))]
    detected = time.perf_counter()
    regions = client.encode_images(images)
    encoded_images = time.perf_counter()
    words = client.encode_captions(captions)
    encoded_captions = time.perf_counter()
    scores = client.score(regions, words)
    console.print(f"detected and encoded {len(judged)} by themselves, scored {scores.size:,} pairs")
    nouns: list[bool] = []
    for i, caption, word in zip(owner, captions_of(judged), words, strict=True):
        cosines = regions[i] @ word.word_embeddings.T
        nouns += noun_hits(judged[i].sample, images[i].boxes, caption, word.tokens, cosines)
    objects = [
        hit
        for one, image in zip(judged, images, strict=True)
        for hit in object_hits(one.sample, image.boxes)
    ]
    image_r1, image_r5, image_r10 = (
        100 * float(hits[:, :k].any(axis=1).mean()) for k in (1, 5, 10)
    )
    return Findings(
        image_r1=image_r1,
        image_r5=image_r5,
        image_r10=image_r10,
        sentences=Recall.of(caption_ranks(scores, np.array(owner))),
        contrast=judge_contrast(client, pairs),
        nouns=100 * float(np.mean(nouns)),
        objects=100 * float(np.mean(objects)),
        photos_per_second=len(images) / (detected - started_detection),
        images_per_second=len(images) / (encoded_images - detected),
        captions_per_second=len(captions) / (encoded_captions - encoded_images),
        indexed_per_second=len(photos) / (indexed - started),
        searches_per_second=len(results) / (searched - started_search),
        caption_ms=milliseconds(client.encode_captions, captions),
        search_ms=milliseconds(lambda said: client.search(said, gallery=GALLERY), captions),
        match_ms=milliseconds(lambda said: client.match(images[0], said), captions),
        precisions=precisions,
        scenes=len(scenes),
        judged=len(judged),
        pairs=len(pairs) // 2,
    )


def captions_of(scenes: Sequence[Drawn]) -> list[Caption]:
    """All captions, scene after scene."""
    return [caption for one in scenes for caption in one.sample.captions]


def sentences(scenes: Sequence[Drawn]) -> tuple[list[str], list[int]]:
    """All captions, and which scene each was written for."""
    owner = [i for i, one in enumerate(scenes) for _ in one.sample.captions]
    return [caption.text for caption in captions_of(scenes)], owner


def milliseconds(call: Callable[[str], object], captions: Sequence[str], calls: int = 100) -> float:
    """Median milliseconds of calls that are made one after the other."""
    times = []
    for caption in captions[:calls]:
        started = time.perf_counter()
        call(caption)
        times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def watched(results: Iterable[Result], what: str, total: int) -> list[Result]:
    """Wait for them all, and show a bar meanwhile."""
    return list(track(results, what, total, console=console, transient=True))


def judge_contrast(client: TeranClient, pairs: Sequence[Drawn]) -> float:
    """How often, in percent, a caption prefers its scene to one that differs in one attribute."""
    regions = client.encode_images([one.photo for one in pairs])
    words = client.encode_captions([one.sample.captions[0].text for one in pairs])
    hits: list[bool] = []
    for i in range(0, len(pairs), 2):
        hits += contrast_hits(client.score(regions[i : i + 2], words[i : i + 2]))
    return 100 * float(np.mean(hits))


def precisions_of(published: Published) -> str:
    """Those of the detector and the encoders, in words."""
    assert published.manifest.detector
    detector = published.manifest.detector["precision"]
    return f"detector {detector}, encoders {published.manifest.precision}"


def rounded(findings: Findings) -> dict[str, Any]:
    """What goes into a file of results."""
    exact = json.dumps(asdict(findings))
    found: dict[str, Any] = json.loads(exact, parse_float=lambda digits: round(float(digits), 2))
    return found


def print_findings(f: Findings) -> None:
    """Print the table of results."""
    table = Table(title=f"{f.scenes} unseen scenes, through Triton ({f.precisions})")
    table.add_column("what")
    table.add_column("result", justify="right")
    first = f"first {f.judged}"
    rows = (
        (
            "image retrieval from PNG bytes, R@1 / R@5 / R@10",
            f"{f.image_r1:.1f} / {f.image_r5:.1f} / {f.image_r10:.1f} %",
        ),
        (
            f"sentence retrieval, {first}, R@1 / R@5 / R@10",
            f"{f.sentences.r1:.1f} / {f.sentences.r5:.1f} / {f.sentences.r10:.1f} %",
        ),
        (f"captions that prefer theirs, {f.pairs} near-identical pairs", f"{f.contrast:.1f} %"),
        (f"nouns whose best region is the right object, {first}", f"{f.nouns:.1f} %"),
        (f"objects with a region, {first}", f"{f.objects:.1f} %"),
        ("regions of a picture found, pictures per second", f"{f.photos_per_second:.1f}"),
        ("images encoded per second", f"{f.images_per_second:.0f}"),
        ("captions encoded per second", f"{f.captions_per_second:.0f}"),
        ("pictures detected, encoded and indexed per second", f"{f.indexed_per_second:.1f}"),
        ("searches per second, many at once", f"{f.searches_per_second:.0f}"),
        ("one caption encoded, median", f"{f.caption_ms:.1f} ms"),
        ("one search, caption to images, median", f"{f.search_ms:.1f} ms"),
        ("one image-caption match, median", f"{f.match_ms:.1f} ms"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def run_queries(client: TeranClient, scenes: Sequence[Drawn]) -> list[Query]:
    """Search for a few test captions and for sentences no scene was described by."""
    asked: list[tuple[str, int | None]] = [(text, None) for text in QUERIES]
    asked += [(scenes[i].sample.captions[0].text, i) for i in range(0, min(len(scenes), 40), 10)]
    queries = []
    for text, truth in asked:
        hits = client.search(text, k=5, gallery=GALLERY).hits
        places = [int(hit.id.split()[1]) for hit in hits]
        ranking = [
            Ranked(place, hit.id, hit.score, hit.score_per_word)
            for place, hit in zip(places, hits, strict=True)
        ]
        best = places[0]
        match = client.match(scenes[best].photo, text)
        console.print(
            f"[bold]{text}[/bold] -> scene {best}, {match.score_per_word:.2f} per word"
            + ("" if truth is None else ", right" if truth == best else ", wrong")
        )
        queries.append(Query(text, truth, ranking, match))
    return queries


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="where results go")
    parser.add_argument("--bundle", type=Path, default=MODEL, help="the model to serve")
    parser.add_argument("--detector", type=Path, default=DETECTOR, help="what finds regions")
    parser.add_argument(
        "--precision", default=AUTO, help="of detector and encoders (default: the fastest)"
    )
    parser.add_argument("--scenes", type=int, default=1000, help="unseen scenes, at least 1")
    parser.add_argument("--pairs", type=int, default=150, help="near-identical pairs, at least 1")
    options = parser.parse_args()
    if min(options.scenes, options.pairs) < 1:
        parser.error("--scenes and --pairs are at least 1")
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "gallery", ignore_errors=True)  # of another run

    console.rule("1. export")
    published = publish(options.out, options.bundle, options.detector, options.precision)
    console.rule("2. serve")
    scenes = drawn(make_split("test", options.scenes), "scene")
    pairs = drawn(make_contrast_pairs(options.pairs), "pair")
    flags = ("--gallery", str(options.out / "gallery"))
    with background_server(published.path, *flags, log=options.out / "server.log") as server:
        console.print(f"Triton is ready on {server.url}")
        console.rule(f"3. {options.scenes} unseen scenes")
        with TeranClient(server.url) as client:
            findings = measure(client, scenes, pairs, precisions_of(published))
            print_findings(findings)
            console.rule("4. queries")
            queries = run_queries(client, scenes)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make demo" if len(sys.argv) == 1 else machine.command(),
        "machine": machine.describe(),
        "seconds": round(time.perf_counter() - started),
        "results": rounded(findings),
    }
    (options.out / "scenes.json").write_text(json.dumps(results, indent=1) + "\n")
    page = options.out / "index.html"
    write_report(page, findings, queries, [one.sample for one in scenes])
    console.rule("done")
    console.print(f"server stopped; {time.perf_counter() - started:.0f} s in all")
    console.print(f"open [bold]{page}[/bold]")


if __name__ == "__main__":
    main()
