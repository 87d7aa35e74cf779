"""Triton end to end on this host's GPU: throughput and latency by concurrency."""

import asyncio
import time
import urllib.request
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from teran_client import AsyncTeranClient, ImageRegions, TeranClient
from teran_export import ExportOptions, export
from teran_export.options import Limits

from teran.cli.background import background_server
from teran.model import TeranConfig
from teran.model.random import random_model
from teran.tokenizer import wordpiece_tokenizer

_WORDS = "a man woman dog cat rides runs on the beach red blue two board wave with and".split()  # noqa: SIM905
_METRICS = ("nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_power_usage")


def random_bundle(config: TeranConfig, folder: Path) -> Path:
    """A random model that knows a few words, in a folder, where it may be already."""
    if folder.is_dir():
        return folder
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *_WORDS]
    special += [f"[unused{i}]" for i in range(config.text.vocab_size - len(special))]
    model = random_model(config, seed=0)
    model.tokenizer = wordpiece_tokenizer({token: i for i, token in enumerate(special)})
    model.save_pretrained(folder)
    return folder


def sweep(config: TeranConfig, work: Path, *, small: bool) -> dict[str, Any]:
    """Serve a random model with AOTInductor engines and load it."""
    bundle, repository = random_bundle(config, work / "bundle"), work / "repository"
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    limits = Limits(8, 8) if small else Limits(64, 128)
    export(ExportOptions(bundle, repository, "aoti", precision, limits=limits), print)
    result: dict[str, Any] = {"precision": precision}
    flags = ("--gallery", str(work / "gallery"))
    with background_server(repository, *flags, log=work / "server.log", timeout=500) as server:
        for kind in ("caption", "image"):
            result[kind] = [
                asyncio.run(_load(server.url, kind, config, clients, 2 if small else 5))
                for clients in ((1, 4) if small else (1, 2, 4, 8, 16, 32, 64))
            ]
        with TeranClient(server.url) as client:
            found = client.profile(_caption(0), _image(config, 0), calls=20)
            result["where_a_match_spends_its_time"] = str(found)
        text = urllib.request.urlopen(server.metrics_url).read().decode()
        result["gpu_metrics"] = [line for line in text.splitlines() if line.startswith(_METRICS)]
    return result


def _caption(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(_WORDS, 10))


def _image(config: TeranConfig, seed: int) -> ImageRegions:
    random = np.random.default_rng(seed)
    corner = random.random((36, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32)
    features = random.exponential(1.1, (36, config.feature_dim)).astype(np.float32)
    return ImageRegions(features, boxes, str(seed))


async def _load(
    url: str, kind: str, config: TeranConfig, clients: int, seconds: float
) -> dict[str, Any]:
    """So many clients that each have one request under way."""
    times: list[float] = []
    items: list[Any] = [_caption(i) if kind == "caption" else _image(config, i) for i in range(32)]
    async with AsyncTeranClient(url) as client:
        call = client.encode_captions if kind == "caption" else client.encode_images
        await call(items[0])
        end = time.perf_counter() + seconds

        async def one(number: int) -> None:
            while (start := time.perf_counter()) < end:
                await call(items[(number + len(times)) % len(items)])
                times.append(1e3 * (time.perf_counter() - start))

        before = await client._channel.statistics()
        await asyncio.gather(*(one(i) for i in range(clients)))
        after = await client._channel.statistics()
    encoder = "textual_encoder" if kind == "caption" else "visual_encoder"
    requests = after[encoder][0] - before.get(encoder, (0, 0.0, 0.0))[0]
    return {
        "clients": clients,
        "per_second": round(len(times) / seconds, 1),
        "p50_ms": round(median(times), 2),
        "p99_ms": round(quantiles(times, n=100)[-1], 2) if len(times) > 1 else None,
        "encoder_requests": requests,
    }
