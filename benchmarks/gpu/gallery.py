"""Gallery search in a device's memory, over random vectors drawn there."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.clock import Clock
from teran.gallery.search.device import DeviceCopy, Precision
from teran.gallery.search.kernels.base import Lanes, Sides

REGIONS, WORDS, K = 36, 12, 40
_CHUNK = 1 << 14
_SPARE = 0.85
"""Of the free memory that a gallery may take."""


@dataclass
class _Chunk:
    number: int
    length: int
    count: int

    def __len__(self) -> int:
        return self.count


@dataclass
class _Volatile:
    """What a scan needs to know of a gallery."""

    chunks: list[_Chunk] = field(default_factory=list)


def sweep(
    device: torch.device, clock: Clock, ceilings: dict[str, float], *, small: bool
) -> list[dict[str, Any]]:
    """Galleries of several sizes and precisions; 1, 8 and 64 queries together."""
    dim = 128 if small else 1024
    rows = []
    for precision in (Precision.FP16, Precision.FP8, Precision.INT8):
        for images in (2_000,) if small else (100_000, 1_000_000):
            size = images * REGIONS * dim * precision.type.itemsize
            if device.type == "cuda" and size > _SPARE * torch.cuda.mem_get_info()[0]:
                rows.append({"images": images, "precision": precision, "skipped": "no room"})
                continue
            rows += _measure(device, clock, ceilings, images, dim, precision)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return rows


def _measure(
    device: torch.device,
    clock: Clock,
    ceilings: dict[str, float],
    images: int,
    dim: int,
    precision: Precision,
) -> list[dict[str, Any]]:
    copy, gallery = DeviceCopy(str(device), precision), _Volatile()
    generator = torch.Generator(device).manual_seed(0)
    size = 0
    for start in range(0, images, _CHUNK):
        count = min(_CHUNK, images - start)
        made = torch.randn(count, REGIONS, dim, device=device, generator=generator)
        made = torch.nn.functional.normalize(made, dim=-1)
        size += copy.hold(len(gallery.chunks), made)
        gallery.chunks.append(_Chunk(len(gallery.chunks), REGIONS, count))
    peak, copied = ceilings["fp16_operations_per_second"], ceilings["copy_bytes_per_second"]
    clamps, rows = [False] * len(gallery.chunks), []
    random = np.random.default_rng(1)
    for queries in (1, 8, 64):
        values = random.standard_normal((queries * WORDS, dim)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        lanes = Lanes.of(np.split(values, queries), Sides.BEST_ROW)

        def scan() -> Any:
            return copy.candidates(gallery, lanes, clamps, [None] * queries, [K] * queries)  # type: ignore[arg-type]  # noqa: B023

        seconds = clock(scan)
        operations = 2 * images * REGIONS * dim * WORDS * queries
        rows.append(
            {
                "images": images,
                "precision": precision,
                "queries": queries,
                "ms": round(1e3 * seconds, 3),
                # A copy counts what it reads and what it writes.
                "times_memory_floor": round(seconds / (size / copied), 3),
                "share_of_peak": round(operations / seconds / peak, 4),
                "right": _check(copy, gallery, lanes, scan()[0]),
            }
        )
    return rows


def _check(copy: DeviceCopy, gallery: _Volatile, lanes: Lanes, found: Any) -> dict[str, float]:
    """The first query against fp64 on the first chunk: how many of its ten best were found."""
    rows = copy.resident(0).double()
    query = torch.from_numpy(lanes.values[: lanes.starts[1]]).to(rows.device).double()
    scores = torch.cat([(part @ query.T).amax(1).sum(1) for part in rows.split(1024)])
    best = scores.topk(10).indices.cpu().numpy()
    first = np.sort(found[found < len(gallery.chunks[0])])
    kept = len(set(best.tolist()) & set(first.tolist()))
    return {"of_ten_best_in_first_chunk_found": kept, "found_in_first_chunk": len(first)}
