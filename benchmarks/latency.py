"""Latency of the full-size model: every engine and precision behind Triton, against eager PyTorch.

All variants are served one after another in each of several rounds, alternating with PyTorch, so
that a slow spell of the machine hits all of them alike. Weights are random; captions come as they
are in COCO, if its file is given; images have 36 regions, as the authors' features do.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from statistics import mean, median, quantiles

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from teran_client import ImageRegions, TeranClient
from teran_export import ExportOptions, export
from teran_export.engines import ENGINES
from teran_export.graphs import TEXTUAL_ENCODER

from benchmarks import machine
from benchmarks.overload import read_captions
from teran.cli.background import background_server
from teran.model import TeranConfig, TeranModel
from teran.tokenizer import CaptionTokenizer

BATCHES = (1, 8, 32)
LARGEST = BATCHES[-1]
STREAM = 4
"""Batches of the largest size in a stream, whose transport overlaps with computing."""
REGIONS = 36
_SINGLE = 5
"""Times more calls with a single item, which take so much less."""
console = Console()


def in_turn(items: list[str], count: int) -> Callable[[], list[str]]:
    """What takes the next so many, and begins again where there are no more."""
    rest = cycle(items)
    return lambda: list(islice(rest, count))


@dataclass
class Measurement:
    """Seconds of one variant's calls, by "captions 32" and the like."""

    name: str
    times: dict[str, list[float]] = field(default_factory=dict)

    def run(self, key: str, call: Callable[[], object], repeat: int, batches: int = 1) -> None:
        """Time `call`, which handles so many batches, after a warm-up."""
        call()
        for _ in range(repeat):
            start = time.perf_counter()
            call()
            self.times.setdefault(key, []).append((time.perf_counter() - start) / batches)

    def p50(self, key: str) -> float:
        return 1e3 * median(self.times[key])

    def p95(self, key: str) -> float:
        return 1e3 * quantiles(self.times[key], n=20)[-1]


def multiply_adds(config: TeranConfig, words: int, regions: int) -> tuple[float, float]:
    """Operations (two for each multiply-add) of one caption and one image, matmuls only."""

    def layers(count: int, rows: int, dim: int, feedforward: int) -> int:
        return count * rows * (4 * dim * dim + 2 * dim * feedforward + 2 * rows * dim)

    text, rows = config.text, regions + 1
    joint = (config.joint_layers, config.embed_dim, config.feedforward_dim)
    caption = layers(text.num_hidden_layers, words, text.hidden_size, text.intermediate_size)
    caption += words * text.hidden_size * config.embed_dim + layers(joint[0], words, *joint[1:])
    image = float(rows * config.feature_dim) * (2 * config.feature_dim + 5 + config.embed_dim)
    image += layers(config.visual_layers, rows, config.feature_dim, config.feedforward_dim)
    image += layers(joint[0], rows, *joint[1:])
    return 2 * caption, 2 * image


def mean_operations(
    config: TeranConfig, tokenizer: CaptionTokenizer, captions: list[str]
) -> tuple[float, float]:
    """Of one caption, without others that it is padded for, and of one image."""
    lengths = [int(tokenizer.encode([one]).attention_mask.sum()) for one in captions]
    operations = [multiply_adds(config, length, REGIONS) for length in lengths]
    return mean(caption for caption, _ in operations), operations[0][1]


def measure_eager(
    model: TeranModel,
    tokenizer: CaptionTokenizer,
    captions: list[str],
    images: list[ImageRegions],
    into: Measurement,
    repeat: int,
) -> None:
    """PyTorch in fp32, without Triton."""
    for batch in BATCHES:
        features = torch.from_numpy(np.stack([image.features for image in images[:batch]]))
        boxes = torch.from_numpy(np.stack([image.boxes for image in images[:batch]]))
        take = in_turn(captions, batch)

        def encode_captions(take: Callable[[], list[str]] = take) -> None:
            tokens = tokenizer.encode(take())
            ids, mask = torch.from_numpy(tokens.input_ids), torch.from_numpy(tokens.attention_mask)
            model.encode_captions(ids, mask)

        more = repeat * (_SINGLE if batch == 1 else 1)
        with torch.inference_mode():
            into.run(f"captions {batch}", encode_captions, more)
            into.run(f"images {batch}", lambda: model.encode_images(features, boxes), more)  # noqa: B023


def measure_served(
    client: TeranClient,
    captions: list[str],
    images: list[ImageRegions],
    into: Measurement,
    repeat: int,
) -> None:
    """The same through gRPC and Triton."""
    for batch in BATCHES:
        take, some_images = in_turn(captions, batch), images[:batch]
        more = repeat * (_SINGLE if batch == 1 else 1)
        into.run(f"captions {batch}", lambda: client.encode_captions(take()), more)  # noqa: B023
        into.run(f"images {batch}", lambda: client.encode_images(some_images), more)  # noqa: B023
    take, stream_images = in_turn(captions, LARGEST * STREAM), images * STREAM
    into.run(f"captions {LARGEST} streamed", lambda: client.encode_captions(take()), repeat, STREAM)
    into.run(
        f"images {LARGEST} streamed", lambda: client.encode_images(stream_images), repeat, STREAM
    )


def measure_in_process(
    repository: Path, engine: str, precision: str, tokenizer: CaptionTokenizer,
    captions: list[str], into: Measurement, repeat: int,
) -> None:  # fmt: skip
    """Single captions through the same engine and tokenizer in this process."""
    folder = repository / TEXTUAL_ENCODER.name / "1"
    run, take = ENGINES[engine].load(TEXTUAL_ENCODER, folder, precision), in_turn(captions, 1)

    def call() -> None:
        tokens = tokenizer.encode(take())
        run({name: getattr(tokens, name) for name in TEXTUAL_ENCODER.inputs})

    into.run("in process captions 1", call, repeat * _SINGLE)


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="from `teran init-random`")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="repositories go here"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--captions", type=Path, help="a COCO captions JSON for real captions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=4, help="calls a round and batch size")
    parser.add_argument(
        "--only", nargs="+", metavar="ENGINE-PRECISION", help="these, for example openvino-int8"
    )
    parser.add_argument("--name", default="latency", help="of the result file")
    options = parser.parse_args()

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = TeranModel.from_pretrained(options.bundle)
    assert model.tokenizer is not None
    tokenizer = CaptionTokenizer(model.tokenizer)
    captions = read_captions(options.captions)
    random = np.random.default_rng(0)
    corner = random.random((LARGEST, REGIONS, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.3], axis=2).astype(np.float32)
    features = random.exponential(1.1, (LARGEST, REGIONS, model.config.feature_dim))
    features *= random.random(features.shape) > 1 / 3
    images = [ImageRegions(features[i].astype(np.float32), boxes[i]) for i in range(LARGEST)]

    eager = Measurement("PyTorch eager fp32")
    variants = [
        (engine, precision)
        for engine in ENGINES
        for precision in ENGINES[engine].precisions()
        if not options.only or f"{engine}-{precision}" in options.only
    ]
    results = {variant: Measurement(" ".join(variant)) for variant in variants}
    repositories = {}
    for engine, precision in variants:
        out = options.work / f"{engine}-{precision}"
        export(ExportOptions(options.bundle, out, engine, precision), console.print)
        repositories[engine, precision] = out
    for round_ in range(options.rounds):
        for variant in variants:
            console.print(f"round {round_ + 1} of {options.rounds}: {results[variant].name}")
            with ExitStack() as stack:
                log = options.work / "server.log"
                server = stack.enter_context(background_server(repositories[variant], log=log))
                client = stack.enter_context(TeranClient(server.url, batch_size=LARGEST))
                measure_served(client, captions, images, results[variant], options.repeat)
            repository = repositories[variant]
            measure_in_process(
                repository, *variant, tokenizer, captions, results[variant], options.repeat
            )
        measure_eager(model, tokenizer, captions, images, eager, options.repeat)
    operations = mean_operations(model.config, tokenizer, captions[:1000])
    report(options, operations, eager, list(results.values()))


def report(
    options: argparse.Namespace,
    operations: tuple[float, float],
    eager: Measurement,
    variants: list[Measurement],
) -> None:
    """Write the JSON and print the table."""
    caption_ops, image_ops = operations
    ceilings = {hint: round(machine.matmul_ceiling(hint), 1) for hint in ("f32", "bf16")}
    kinds = ("captions", "images")
    rows = {}
    columns = [f"{kind} {batch}" for kind in kinds for batch in (1, LARGEST)]
    streamed = [f"{kind} {LARGEST} streamed" for kind in kinds]
    table = Table("p50, ms", *columns, *streamed, "caption in process", "streamed over eager")
    for measured in (eager, *variants):
        speed_up = {
            key: round(eager.p50(key.removesuffix(" streamed")) / measured.p50(key), 2)
            for key in measured.times
            if key.removesuffix(" streamed") in eager.times
        }
        best = f"{kinds[0]} {LARGEST}", f"{kinds[1]} {LARGEST}"
        rows[measured.name] = {
            "p50_ms": {key: round(measured.p50(key), 2) for key in measured.times},
            "p95_ms": {key: round(measured.p95(key), 2) for key in measured.times},
            "speed_up_over_eager": speed_up,
            "gop_per_second": {
                key: round(LARGEST * per_item / measured.p50(key) / 1e6, 1)
                for name, per_item in zip(best, operations, strict=True)
                for key in (name, f"{name} streamed")
                if key in measured.times
            },
        }
        cells = [
            f"{measured.p50(key):.1f}" if key in measured.times else ""
            for key in (*columns, *streamed, "in process captions 1")
        ]
        ratios = " / ".join(f"{speed_up[key]:.2f}x" for key in streamed if key in speed_up)
        table.add_row(measured.name, *cells, ratios)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "matmul_ceiling_gop_per_second": ceilings,
        "gop_per_item": {
            "caption": round(caption_ops / 1e9, 3),
            "image": round(image_ops / 1e9, 3),
        },
        "unit": "milliseconds through gRPC, client included; PyTorch without Triton",
        "rounds": options.rounds,
        "results": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(table)
    console.print(f"matmul ceilings: {ceilings} GOP/s; written to {path}")


if __name__ == "__main__":
    main()
