"""What it costs to get 32 images to the server: gRPC against shared memory, taking turns.

The model served is as small as can be, so that little but the transport is left: features of 2048
values through one layer to 16.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from rich.console import Console
from teran_client import ImageRegions, TeranClient
from teran_export import ExportOptions, export

from benchmarks import machine
from teran.model import TeranConfig, TextConfig
from teran.model.random import random_model
from teran.serving.background import background_server
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
    times: dict[str, list[float]] = {"gRPC": [], "shared memory": []}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "bundle")
        published = export(
            ExportOptions(Path(folder) / "bundle", Path(folder) / "repository", "openvino", "fp32")
        )
        flags = ("--gallery", str(Path(folder) / "gallery"))
        with (
            background_server(published.path, *flags) as server,
            TeranClient(server.url, shared_memory=False) as plain,
            TeranClient(server.url, shared_memory=True) as shared,
        ):
            for turn in range(options.repeat + 3):
                for name, client in (("gRPC", plain), ("shared memory", shared)):
                    start = time.perf_counter()
                    client.encode_images(images)
                    if turn >= 3:
                        times[name].append(1e3 * (time.perf_counter() - start))
    megabytes = IMAGES * REGIONS * FEATURES * 4 / 1e6
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.transport " + " ".join(sys.argv[1:]),
        "machine": machine.describe(),
        "images": IMAGES,
        "megabytes": round(megabytes, 1),
        "p50_ms": {name: round(median(values), 2) for name, values in times.items()},
        "p95_ms": {name: round(quantiles(values, n=20)[-1], 2) for name, values in times.items()},
    }
    path = options.out / "transport.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(report)


if __name__ == "__main__":
    main()
