"""What it costs to get 32 images to the server: gRPC, shared memory, and fp16, taking turns.

The model served is as small as can be, so that little but the transport is left: features of 2048
values through one layer to 16.
"""

import argparse
import json
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from rich.console import Console
from teran_client import ImageRegions, TeranClient
from teran_client.protocol import Arrays, image_inputs, infer_request
from teran_export import ExportOptions, export

from benchmarks import machine
from teran.cli.background import background_server
from teran.model import TeranConfig, TextConfig
from teran.model.random import random_model
from teran.tokenizer import wordpiece_tokenizer

IMAGES, REGIONS, FEATURES = 32, 36, 2048
console = Console()


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, ".": 4, "a": 5}
    text = TextConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16, max_position_embeddings=96,
    )  # fmt: skip
    config = TeranConfig(
        feature_dim=FEATURES, embed_dim=16, visual_layers=0, joint_layers=0, text=text
    )
    model = random_model(config, seed=0)
    model.tokenizer = wordpiece_tokenizer(vocabulary)
    random = np.random.default_rng(0)
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (REGIONS, 1))
    images = [
        ImageRegions(random.random((REGIONS, FEATURES), np.float32), boxes, f"{i}")
        for i in range(IMAGES)
    ]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "bundle")
        with ExitStack() as stack:
            clients = {}
            for precision in ("fp32", "fp16"):
                out = Path(folder) / precision
                published = export(
                    ExportOptions(
                        Path(folder) / "bundle", out, "openvino", "fp32",
                        feature_precision=precision,
                    )
                )  # fmt: skip
                server = stack.enter_context(background_server(published.path))
                for transport, shared in (("gRPC", False), ("shared memory", True)):
                    client = TeranClient(server.url, shared_memory=shared, batch_size=IMAGES)
                    clients[f"{transport}, {precision}"] = stack.enter_context(client)
            times = {name: [] for name in clients}
            for turn in range(options.repeat + 3):
                for name, client in clients.items():
                    start = time.perf_counter()
                    client.encode_images(images)
                    if turn >= 3:
                        times[name].append(1e3 * (time.perf_counter() - start))
            inputs = image_inputs(images, next(iter(clients.values())).info())
            building = [_seconds_of_request(inputs) for _ in range(options.repeat)]
    megabytes = IMAGES * REGIONS * FEATURES * 4 / 1e6
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "images": IMAGES,
        "megabytes": round(megabytes, 1),
        "building_the_fp32_request_ms": round(1e3 * median(building), 2),
        "p50_ms": {name: round(median(values), 2) for name, values in times.items()},
        "p95_ms": {name: round(quantiles(values, n=20)[-1], 2) for name, values in times.items()},
    }
    path = options.out / "transport.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(report)


def _seconds_of_request(inputs: Arrays) -> float:
    """What a request object kept from call to call could save at most, its bytes apart."""
    start = time.perf_counter()
    infer_request("visual_encoder", inputs, ("region_embeddings",))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
