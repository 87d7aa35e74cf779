"""The GPU checklist: correctness, ceilings, encoders, gallery, plans, Triton; one JSON.

    python -m benchmarks.gpu.checklist --out "$OUT"            # on a GPU, full size
    python -m benchmarks.gpu.checklist --out build/gpu --small # a rehearsal, on any host

Every section writes the file when it is done; one that fails says so in it and lets the others run.
Data are random, never zeros. Times are medians after a warm-up, with a synchronised clock; each is
set against the ceilings measured in the same run.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import machine
from benchmarks.gpu import encoders, gallery, plans, serving
from benchmarks.gpu.clock import Clock, ceilings
from teran.model import TeranConfig, TextConfig
from teran.model.random import random_model

console = Console()
SMALL = TeranConfig(
    feature_dim=256, embed_dim=128, visual_layers=1, joint_layers=1, feedforward_dim=256,
    text=TextConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=96,
    ),
)  # fmt: skip


@dataclass
class Report:
    """What was found, written after every section."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, section: Callable[[], Any]) -> None:
        """Run one section, and keep what it found or why it failed."""
        console.rule(name)
        start = time.perf_counter()
        try:
            found: Any = section()
        except Exception as error:  # the others go on
            found = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            console.print(traceback.format_exc())
        self.content["sections"][name] = found
        self.content["seconds"][name] = round(time.perf_counter() - start, 1)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
        console.print(found)


SECTIONS = ("ceilings", "correctness", "encoders", "gallery", "plans", "triton")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--small", action="store_true", help="a small model and gallery")
    parser.add_argument("--name", default="gpu", help="of the result file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    clock = Clock(device, repeat=5 if options.small else 20)
    config = SMALL if options.small else TeranConfig()
    report = Report(options.out / f"{options.name}.json")
    report.content = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m benchmarks.gpu.checklist " + " ".join(sys.argv[1:]),
        "machine": machine.describe(),
        "gpu": gpu() if on_gpu else None,
        "model": "small" if options.small else "full size, random weights",
        "sections": {},
        "seconds": {},
    }
    found: dict[str, float] = {}

    def measure_ceilings() -> dict[str, float]:
        found.update(ceilings(clock, small=options.small))
        return found

    report.run("ceilings", measure_ceilings)
    wanted = set(options.sections)
    work = options.out / "work"
    if wanted & {"correctness", "encoders"}:
        model = random_model(config, seed=0)
        engines = encoders.Engines(model, device, work)
        if "correctness" in wanted:
            report.run("correctness", lambda: encoders.correctness(engines))
        if "encoders" in wanted:
            report.run(
                "encoders", lambda: encoders.sweep(engines, clock, found, small=options.small)
            )
        del model, engines
    if "gallery" in wanted:
        report.run("gallery", lambda: gallery.sweep(device, clock, found, small=options.small))
    if "plans" in wanted:
        report.run("plans", lambda: plans.sweep(config, work))
    if "triton" in wanted:
        report.run("triton", lambda: serving.sweep(config, work, small=options.small))
    console.print(f"written to {report.path}")


def gpu() -> dict[str, Any]:
    """What the GPU is."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
