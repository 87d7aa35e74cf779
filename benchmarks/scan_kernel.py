"""The kernel that scans galleries on GPUs: compiled without one, and what to expect of it.

    python -m benchmarks.scan_kernel

For each kind of GPU and each precision: shared memory, registers and spills of what the compiler
makes. And its roofline on paper, beside that of torch's operations, for the first real run to be
held against: what is moved over the bandwidth, or what is multiplied over the peak, whichever takes
longer. **Nothing here has been run on a GPU.**
"""

import argparse
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import triton
import triton.backends.nvidia
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import machine
from teran.gallery.search.device import Precision
from teran.gallery.search.device.fused import Tile
from teran.gallery.search.device.fused_kernel import scan
from teran.gallery.search.kernels.base import Sides

CAPABILITIES = (80, 89, 90, 100, 120)
DIM = 1024
_TYPES = {
    Precision.FP16: "fp16",
    Precision.BF16: "bf16",
    Precision.FP8: "fp8e4nv",
    Precision.INT8: "i8",
}
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
_MULTIPLY = re.compile(r"(wgmma|tcgen05|mma)\.(?:mma|sync)")
console = Console(width=110)


@dataclass(frozen=True)
class Shape:
    """What is searched: by how many queries, of how many lanes each, in items of how many rows."""

    queries: int
    lanes: int
    rows: int
    sides: Sides


SENTENCES = Shape(64, 12, 36, Sides.BEST_ROW)
"""Captions against images, as MrSw."""
SHAPES = (SENTENCES, Shape(1, 12, 36, Sides.BEST_ROW), Shape(64, 36, 12, Sides.BEST_LANE))
LARGEST = Shape(64, 100, 200, Sides.BEST_ROW | Sides.BEST_LANE)


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of the kernel for one kind of GPU."""

    capability: int
    precision: str
    queries: int
    lanes: int
    sides: int
    shared: int
    """Bytes of a program."""
    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread that lie in memory."""
    multiplies_by: str
    """The instruction of the tensor cores."""


def compiled(capability: int, precision: Precision, shape: Shape) -> Compiled:
    """Compile the kernel, on any machine."""
    scaled = precision is Precision.INT8
    tile = Tile.of(shape.queries * shape.lanes, DIM, precision.type.itemsize)
    constants: dict[str, Any] = {
        "ROWS": tile.rows,
        "LANES": tile.lanes,
        "DIM": tile.dim,
        "BEST_ROW": Sides.BEST_ROW in shape.sides,
        "BEST_LANE": Sides.BEST_LANE in shape.sides,
        "SCALED": scaled,
    }
    unused = {
        "row_scale": scaled,
        "lane_scale": scaled,
        "best_rows": constants["BEST_ROW"],
        "sums": constants["BEST_LANE"],
    }
    constants |= {name: None for name, used in unused.items() if not used}
    pointers = {"query_of_lane": "i32", "first_query": "i32", "clamp": "i8"}
    pointers |= dict.fromkeys(("rows", "lanes"), _TYPES[precision])
    pointers |= dict.fromkeys(("row_scale", "lane_scale", "best_rows", "sums"), "fp32")
    signature = {
        name: "constexpr"
        if name in constants
        else f"*{pointers[name]}"
        if name in pointers
        else "fp32"
        if name == "factor"
        else "i32"
        for name in scan.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(scan.arg_names)
        if name not in constants and (name in pointers or name == "dim")
    }
    made = triton.compile(
        ASTSource(scan, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.warps, "num_stages": tile.stages},
    )
    tool = Path(triton.backends.nvidia.__file__).parent / "bin/cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = _USAGE.search(told)
    assert usage is not None, told
    registers, stack, local = map(int, usage.groups())
    by = {found[1] for found in _MULTIPLY.finditer(made.asm["ptx"])}
    return Compiled(
        capability,
        precision,
        shape.queries,
        shape.lanes,
        int(shape.sides),
        made.metadata.shared,
        registers,
        stack + local,
        "+".join(sorted(by)),
    )


@dataclass(frozen=True)
class Gpu:
    """What its data sheet says."""

    name: str
    bandwidth: float
    """Bytes a second."""
    cache: float
    """Bytes a second that its L2 cache gives; from what others have measured, not the sheet."""
    peak: dict[int, float]
    """Dense operations a second of its tensor cores, summed in fp32, by the bytes of a value."""


GPUS = (
    Gpu("H100 SXM", 3.35e12, 5.5e12, {2: 989e12, 1: 1979e12}),
    Gpu("RTX 4090", 1.008e12, 5e12, {2: 165.2e12, 1: 330.3e12}),
)


def roofline(gpu: Gpu, precision: Precision, images: int, shape: Shape) -> dict[str, Any]:
    """Milliseconds of one scan on paper, by our kernel and by torch's operations.

    Of torch's matmul it is assumed that the cache does not hold it up, which flatters it.
    """
    size, total = precision.type.itemsize, shape.queries * shape.lanes
    tile = Tile.of(total, DIM, size)
    width = tile.lanes
    rows, padded = images * shape.rows, -(-total // width) * width
    read, peak = rows * DIM * size, gpu.peak[size]
    scores = 4 * images * shape.queries
    best = 4 * images * padded  # for every lane, written at first, by the kernel, and read
    multiplied = 2 * rows * padded * DIM / peak
    loaded = read * (padded // width) * (1 + width / tile.rows)  # by all programs, from the cache
    ours = max(read / gpu.bandwidth, multiplied, loaded / gpu.cache)
    ours += (3 * best + scores) / gpu.bandwidth
    cosines = 2 * rows * -(-total // 16) * 16  # bytes, written once and read once
    product = max((read + cosines) / gpu.bandwidth, 2 * rows * total * DIM / peak)
    torch = product + (cosines + scores) / gpu.bandwidth
    return {
        "gpu": gpu.name,
        "precision": precision.value,
        "images": images,
        "queries": shape.queries,
        "gigabytes_of_rows": round(read / 1e9, 2),
        "kernel_ms": round(1e3 * ours, 2),
        "torch_ms": round(1e3 * torch, 2),
        "ratio": round(torch / ours, 2),
    }


def rooflines() -> Iterator[dict[str, Any]]:
    """Of a million images, where they fit, else of 100,000."""
    for gpu in GPUS:
        for precision in (Precision.FP16, Precision.FP8):
            images = 1_000_000 if gpu.bandwidth > 3e12 else 100_000
            for queries in (1, 8, 64):
                yield roofline(gpu, precision, images, Shape(queries, 12, 36, Sides.BEST_ROW))


def main() -> None:
    """Compile, calculate, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    table = Table("GPU", "precision", "queries", "lanes", "shared", "registers", "spilled", "by")
    kernels = [
        compiled(capability, precision, shape)
        for capability in CAPABILITIES
        for precision in Precision
        if precision is not Precision.FP8 or capability >= 89
        for shape in (*SHAPES, LARGEST)
    ]
    for one in kernels:
        cells = (one.capability, one.precision, one.queries, one.lanes, one.shared)
        table.add_row(*map(str, (*cells, one.registers, one.spilled, one.multiplies_by)))
    console.print(table)
    table = Table("GPU", "precision", "images", "queries", "kernel ms", "torch ms", "ratio")
    expected = list(rooflines())
    for row in expected:
        names = ("gpu", "precision", "images", "queries", "kernel_ms", "torch_ms", "ratio")
        table.add_row(*(str(row[name]) for name in names))
    console.print(table)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": machine.command(),
        "machine": machine.describe(),
        "compiler": f"triton {triton.__version__}",
        "run": "never",
        "kernels": [asdict(one) for one in kernels],
        "rooflines": expected,
    }
    path = options.out / "scan_kernel.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
