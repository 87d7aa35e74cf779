"""Repositories for TensorRT-RTX, made by its real builder on a host that need not have a GPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teran_export import ExportOptions, export
from teran_export.engines import ENGINES
from teran_export.gate import Answers
from teran_export.options import BuildOptions
from teran_export.verification import verify

from teran.errors import ExportError
from teran.runtime.rtx import RtxPlan

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


def options(
    bundle: Path, out: Path, precision: str = "auto", capabilities: str = "8.9,12.0"
) -> Any:
    build = BuildOptions(compute_capabilities=capabilities)
    return ExportOptions(bundle, out / "repository", "tensorrt-rtx", precision, build=build)


@without_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "fp8"])
def test_repositories_are_made_without_a_gpu(
    precision: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    published = export(options(tiny_bundle, tmp_path, precision))
    made = published.manifest
    assert (made.precision, made.verified) == (precision, False)
    checks = made.checks[precision]["encoders"]
    assert all(0.95 < one["min_cosine"] < 1.000001 for one in checks.values())
    assert all(one["milliseconds"] is None for one in checks.values())
    for model in ("visual_encoder", "textual_encoder", "alignment"):
        files = sorted(path.name for path in (published.path / model / "1").iterdir())
        assert files == ["model.plan"]
        config = (published.path / model / "config.pbtxt").read_text()
        assert 'backend: "tensorrt_rtx"' in config
        assert "KIND_GPU" in config
    assert not export(options(tiny_bundle, tmp_path, precision)).built
    answers = Answers.load(published.path / "answers.npz")
    assert np.abs(answers.embeddings["visual_encoder"]).max() > 0


@without_gpu
def test_the_default_where_nothing_can_be_timed(tiny_bundle: Path, tmp_path: Path) -> None:
    assert export(options(tiny_bundle, tmp_path)).manifest.precision == "fp16"


@without_gpu
def test_what_was_built_without_a_gpu_is_not_verified_without_one(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    repository = export(options(tiny_bundle, tmp_path)).path
    with pytest.raises(ExportError, match="finds no GPU"):
        verify(repository)


def test_unknown_compute_capabilities_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"compute capability 9\.0, x; there are 7\.5, 8\.0, "):
        export(options(tiny_bundle, tmp_path, "fp16", "8.9,9.0,x"))
    assert not (tmp_path / "repository").exists()


def test_plans_are_for_the_gpus_that_are_named() -> None:
    engine: Any = ENGINES["tensorrt-rtx"]
    assert engine.capabilities(BuildOptions(compute_capabilities=" 8.9, 12.0 ")) == [
        "SM89",
        "SM120",
    ]
    if not torch.cuda.is_available():
        assert len(engine.capabilities(BuildOptions())) >= 6


class Recorded:
    """An engine of TensorRT-RTX on a GPU that is not here: what it is asked for."""

    def __init__(self, refused: bool = False) -> None:
        self.configs: list[Recorded] = []
        self.contexts: list[Recorded] = []
        self.kernels = b""
        self.refused = refused

    def create_runtime_config(self) -> "Recorded":
        self.configs.append(Recorded())
        return self.configs[-1]

    def create_execution_context(self, config: "Recorded") -> "Recorded":
        self.contexts.append(config)
        return config

    def create_runtime_cache(self) -> "Recorded":
        return self

    def set_runtime_cache(self, cache: "Recorded") -> bool:
        self.cache = cache
        return True

    def deserialize(self, data: bytes) -> bool:
        self.kernels = data
        return True

    def serialize(self) -> bytes:
        return self.kernels


def plan(engine: Recorded, cache: Path | None) -> RtxPlan:
    """One without a GPU: only what its contexts are made of."""
    made = object.__new__(RtxPlan)
    made._trt, made._engine, made._file = trt, engine, cache
    made._graph_profiles, made._cache, made._kept, made._seen = (0,), None, b"", set()
    return made


def test_what_was_compiled_is_kept(tmp_path: Path) -> None:
    file, engine = tmp_path / "model.kernels", Recorded()
    first = plan(engine, file)
    contexts = [first._make_context(profile) for profile in (0, 1)]
    strategies = [context.cuda_graph_strategy for context in contexts]
    assert strategies == [trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE, trt.CudaGraphStrategy.DISABLED]
    assert contexts[0].cache is contexts[1].cache
    contexts[0].cache.kernels = b"compiled"
    first.keep()
    assert [path.name for path in tmp_path.iterdir()] == ["model.kernels"]
    second = plan(Recorded(), file)
    assert second._make_context(0).cache.kernels == b"compiled"


def test_files_that_cant_be_written_are_done_without(tmp_path: Path) -> None:
    engine = Recorded()
    made = plan(engine, tmp_path / "nowhere" / "model.kernels")
    made._make_context(0).cache.kernels = b"compiled"
    made.keep()
    made.keep()


def test_the_bindings_have_what_the_runtime_uses() -> None:
    config = trt.IRuntimeConfig
    for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
        assert isinstance(getattr(config, name), property)
    for holder, names in (
        (config, ("create_runtime_cache", "set_runtime_cache")),
        (trt.IRuntimeCache, ("serialize", "deserialize")),
        (trt.ICudaEngine, ("create_runtime_config", "create_execution_context")),
    ):
        assert all(callable(getattr(holder, name)) for name in names)
    assert trt.DynamicShapesKernelSpecializationStrategy.LAZY


def test_manifests_say_what_plans_are_for(tiny_bundle: Path, tmp_path: Path) -> None:
    repository = export(options(tiny_bundle, tmp_path)).path
    request = json.loads((repository / "manifest.json").read_text())["request"]
    assert request["build"]["compute_capabilities"] == "8.9,12.0"
    assert request["versions"]["tensorrt-rtx-cu12-bindings"] == trt.__version__
