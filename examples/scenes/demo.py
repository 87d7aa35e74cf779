"""The demo: export, serve, index 1,000 unseen scenes over gRPC, search them, show the results."""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table
from teran_client import Entry, ImageRegions, Ranked, TeranClient
from teran_export import ExportOptions, export

from benchmarks import machine
from examples.scenes.dataset import Sample, make_contrast_pair, make_split
from examples.scenes.judge import contrast_hits, noun_hits
from examples.scenes.report import Query, write_report
from teran.cli.background import background_server
from teran.evaluation.retrieval import Recall, caption_ranks, image_ranks

MODEL = Path(__file__).parent / "model"
GALLERY = "scenes"
QUERIES = (
    "a big red heart above a small blue star",
    "two green rings and a striped purple box",
    "a dotted yellow ball to the left of a white moon",
    "a pink triangle and an orange cross with a small striped star",
)
console = Console()


@dataclass(frozen=True)
class Findings:
    """Everything the demo measured, through the server."""

    images: Recall
    sentences: Recall
    contrast: float
    nouns: float
    searched: tuple[float, float]
    """Image R@1 and R@10 as the gallery's searches give them."""
    images_per_second: float
    captions_per_second: float
    indexed_per_second: float
    searches_per_second: float
    caption_ms: float
    search_ms: float
    match_ms: float
    precision: str
    scenes: int


def as_image(sample: Sample, name: str) -> ImageRegions:
    """A sample as the client takes it."""
    return ImageRegions(sample.features, sample.boxes, name)


def write_calibration(path: Path, scenes: int = 200) -> None:
    """Write scenes of the validation split as calibration data for the export."""
    samples = make_split("val", scenes)
    captions = [caption.text for sample in samples for caption in sample.captions]
    features = np.stack([sample.features for sample in samples])
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        region_features=features,
        boxes=np.stack([sample.boxes for sample in samples]),
        region_mask=np.ones(features.shape[:2], bool),
        captions=np.array(captions),
        image_of_caption=np.repeat(np.arange(len(samples)), len(captions) // len(samples)),
    )
    partial.replace(path)


def measure(client: TeranClient, samples: list[Sample], precision: str) -> Findings:
    """Encode, score and judge everything."""
    images = [as_image(sample, f"scene {i}") for i, sample in enumerate(samples)]
    captions = [caption.text for sample in samples for caption in sample.captions]
    owner = np.repeat(np.arange(len(samples)), len(captions) // len(samples))

    started = time.perf_counter()
    regions = client.encode_images(images)
    encoded_images = time.perf_counter()
    words = client.encode_captions(captions)
    encoded_captions = time.perf_counter()
    console.print(f"encoded {len(images)} images and {len(captions)} captions over gRPC")
    scores = client.score(regions, words)
    console.print(f"scored {scores.size:,} pairs")
    started_index = time.perf_counter()
    ids = client.index([Entry(image, image.name) for image in images], gallery=GALLERY)
    indexed = time.perf_counter()
    results = client.search(captions, k=10, gallery=GALLERY)
    searched = time.perf_counter()
    console.print(f"indexed {len(ids)} images and searched them for {len(results)} captions")
    found = [
        [hit.id for hit in result].index(name) if any(hit.id == name for hit in result) else 10
        for result, name in zip(results, (images[i].name for i in owner), strict=True)
    ]

    nouns: list[bool] = []
    match_times = []
    for i, sample in enumerate(samples):
        caption = sample.captions[0]
        before = time.perf_counter()
        match = client.match(images[i], caption.text)
        match_times.append(time.perf_counter() - before)
        nouns += noun_hits(sample, caption, match.tokens, match.similarity)
    contrast: list[bool] = []
    for i in range(300):
        pair = make_contrast_pair(i)
        pair_images = [as_image(sample, f"contrast {i}") for sample in pair]
        pair_scores = client.score(pair_images, [sample.captions[0].text for sample in pair])
        contrast += contrast_hits(pair_scores)
    caption_times, search_times = [], []
    for caption_text in captions[:200]:
        before = time.perf_counter()
        client.encode_captions(caption_text)
        encoded = time.perf_counter()
        client.search(caption_text, gallery=GALLERY)
        caption_times.append(encoded - before)
        search_times.append(time.perf_counter() - encoded)
    return Findings(
        Recall.of(image_ranks(scores, owner)),
        Recall.of(caption_ranks(scores, owner)),
        100 * float(np.mean(contrast)),
        100 * float(np.mean(nouns)),
        (100 * float(np.mean(np.array(found) < 1)), 100 * float(np.mean(np.array(found) < 10))),
        len(images) / (encoded_images - started),
        len(captions) / (encoded_captions - encoded_images),
        len(images) / (indexed - started_index),
        len(captions) / (searched - indexed),
        1e3 * median(caption_times),
        1e3 * median(search_times),
        1e3 * median(match_times),
        precision,
        len(samples),
    )


def print_findings(f: Findings) -> None:
    """Print the table of results."""
    table = Table(title=f"{f.scenes} unseen scenes, through Triton ({f.precision})")
    table.add_column("what")
    table.add_column("result", justify="right")
    rows = (
        (
            "image retrieval R@1 / R@5 / R@10",
            f"{f.images.r1:.1f} / {f.images.r5:.1f} / {f.images.r10:.1f} %",
        ),
        (
            "sentence retrieval R@1 / R@5 / R@10",
            f"{f.sentences.r1:.1f} / {f.sentences.r5:.1f} / {f.sentences.r10:.1f} %",
        ),
        ("the same, found in the gallery, R@1 / R@10", "{:.1f} / {:.1f} %".format(*f.searched)),
        ("contrast pairs told apart", f"{f.contrast:.1f} %"),
        ("nouns whose best region is the right object", f"{f.nouns:.1f} %"),
        ("images encoded per second", f"{f.images_per_second:.0f}"),
        ("captions encoded per second", f"{f.captions_per_second:.0f}"),
        ("images encoded and indexed per second", f"{f.indexed_per_second:.0f}"),
        ("searches per second, many at once", f"{f.searches_per_second:.0f}"),
        ("one caption encoded, median", f"{f.caption_ms:.1f} ms"),
        ("one search, caption to images, median", f"{f.search_ms:.1f} ms"),
        ("one image-caption match, median", f"{f.match_ms:.1f} ms"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def run_queries(client: TeranClient, samples: list[Sample]) -> list[Query]:
    """Search for a few test captions and for sentences no scene was described by."""
    images = [as_image(sample, f"scene {i}") for i, sample in enumerate(samples)]
    asked: list[tuple[str, int | None]] = [(text, None) for text in QUERIES]
    asked += [(samples[i].captions[0].text, i) for i in range(0, min(len(samples), 40), 10)]
    queries = []
    for text, truth in asked:
        hits = client.search(text, k=5, gallery=GALLERY).hits
        places = [int(hit.id.split()[1]) for hit in hits]
        ranking = [
            Ranked(place, hit.id, hit.score, hit.score_per_word)
            for place, hit in zip(places, hits, strict=True)
        ]
        best = places[0]
        match = client.match(images[best], text)
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
    parser.add_argument("--scenes", type=int, default=1000, help="unseen scenes to search")
    options = parser.parse_args()
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)

    console.rule("1. export")
    calibration = options.out / "calibration.npz"
    if not calibration.is_file():
        write_calibration(calibration)
    repository = options.out / "repository"
    published = export(
        ExportOptions(options.bundle, repository, calibration=calibration), console.print
    )
    console.rule("2. serve")
    flags = ("--gallery", str(options.out / "gallery"))
    with background_server(repository, *flags, log=options.out / "server.log") as server:
        console.print(f"Triton is ready on {server.url}")
        console.rule(f"3. {options.scenes} unseen scenes")
        samples = make_split("test", options.scenes)
        with TeranClient(server.url) as client:
            findings = measure(client, samples, published.manifest.precision)
            print_findings(findings)
            console.rule("4. queries")
            queries = run_queries(client, samples)
    results = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make demo",
        "machine": machine.describe(),
        "results": asdict(findings),
    }
    (options.out / "scenes.json").write_text(json.dumps(results, indent=1) + "\n")
    page = options.out / "index.html"
    write_report(page, findings, queries, samples)
    console.rule("done")
    console.print(f"server stopped; {time.perf_counter() - started:.0f} s in all")
    console.print(f"open [bold]{page}[/bold]")


if __name__ == "__main__":
    main()
