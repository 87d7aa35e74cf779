"""Repositories for TensorRT-RTX, made by its real builder on a host that need not have a GPU."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teran_export import ExportOptions, Published, export, publish
from teran_export.engines import ENGINES
from teran_export.engines.base import Source
from teran_export.gate import Answers
from teran_export.graphs import TEXTUAL_ENCODER, random_inputs
from teran_export.options import BuildOptions, Limits
from teran_export.verification import verify

from teran.errors import ExportError
from teran.model import TeranModel
from teran.runtime.rtx import RtxPlan
from teran.supervisor.host import free_ports
from tests.conftest import TINY
from tests.fakes.bindings import OF_RTX

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")


def options(bundle: Path, out: Path, capabilities: str) -> ExportOptions:
    build = BuildOptions(compute_capabilities=capabilities)
    return ExportOptions(bundle, out / "repository", "tensorrt-rtx", "int8", build=build)


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A repository in int8, for all GPUs that can be built for."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    out = tmp_path_factory.mktemp("rtx")
    return export(options(tiny_bundle, out, ""))


def test_a_repository_is_made_without_a_gpu(made: Published) -> None:
    assert (made.manifest.precision, made.manifest.verified) == ("int8", False)
    checks = made.manifest.checks["int8"]["encoders"]
    assert all(0.95 < one["min_cosine"] < 1.000001 for one in checks.values())
    assert all(one["milliseconds"] is None for one in checks.values())
    for model in ("visual_encoder", "textual_encoder", "alignment"):
        assert [path.name for path in (made.path / model / "1").iterdir()] == ["model.plan"]
        config = (made.path / model / "config.pbtxt").read_text()
        assert 'backend: "tensorrt_rtx"' in config
        assert "KIND_GPU" in config
    request = json.loads((made.path / "manifest.json").read_text())["request"]
    assert request["build"]["compute_capabilities"] == ""
    assert request["versions"]["tensorrt-rtx-cu12-bindings"] == trt.__version__
    answers = Answers.load(made.path / "answers.npz")
    assert np.abs(answers.embeddings["visual_encoder"]).max() > 0


def test_what_was_built_without_a_gpu_is_not_verified_without_one(
    made: Published, tiny_bundle: Path
) -> None:
    with pytest.raises(ExportError, match="finds no GPU"):
        verify(made.path)
    assert not export(options(tiny_bundle, made.path.parent, "")).built


def test_serving_it_without_a_gpu_ends_in_one_sentence(made: Published) -> None:
    command = [sys.executable, "-m", "teran.cli", "serve", str(made.path)]
    ports = [f"--{name}-port={port}" for name, port in zip(
        ("grpc", "metrics", "health"), free_ports("127.0.0.1", 3), strict=True
    )]  # fmt: skip
    ran = subprocess.run(
        [*command, *ports], capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 1
    last = (ran.stdout + ran.stderr).strip().split("\n")[-1]
    assert "tensorrt-rtx finds no GPU" in last
    assert "Traceback" not in ran.stdout + ran.stderr


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.999), ("fp8", 0.95)])
def test_what_a_plan_is_made_of_is_run_in_its_place(
    precision: str, least: float, tiny_model: TeranModel, tmp_path: Path
) -> None:
    """bf16 by PyTorch, as ONNX Runtime has no kernels for it on a CPU."""
    engine, folder = ENGINES["tensorrt-rtx"], tmp_path / "engine"
    folder.mkdir()
    source = Source(TEXTUAL_ENCODER, TEXTUAL_ENCODER.path(tmp_path), tiny_model, Limits(8, 16))
    samples = [random_inputs(TEXTUAL_ENCODER, TINY, (8, 16), seed) for seed in range(8)]
    engine.build(source, folder, precision, samples)
    assert (folder / "model.plan").stat().st_size > 1e5
    inputs = random_inputs(TEXTUAL_ENCODER, TINY, (3, 20), seed=99)
    result = engine.load(TEXTUAL_ENCODER, folder, precision)(inputs)["word_embeddings"]
    with torch.inference_mode():
        expected = tiny_model.textual_encoder(*map(torch.from_numpy, inputs.values())).numpy()
    there = np.abs(expected).max(-1) > 0
    cosine = (result * expected).sum(-1)[there] / np.linalg.norm(result, axis=-1)[there]
    assert cosine.min() > least


def test_the_default_where_nothing_can_be_timed(tiny_bundle: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    wanted = ExportOptions(tiny_bundle, engine="tensorrt-rtx", calibration=Path("data.npz"))
    assert publish._wanted(ENGINES["tensorrt-rtx"], wanted) == ["fp16"]


def test_unknown_compute_capabilities_are_named(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"compute capability 9\.0, x; there are 8\.0, 8\.6, "):
        export(options(tiny_bundle, tmp_path, "8.9,9.0,x"))
    assert not (tmp_path / "repository").exists()


def test_plans_are_for_the_gpus_that_are_named() -> None:
    engine: Any = ENGINES["tensorrt-rtx"]
    named = BuildOptions(compute_capabilities=" 8.9, 12.0 ")
    assert engine.capabilities(named, "fp8") == ["SM89", "SM120"]
    if not torch.cuda.is_available():
        assert {"SM80", "SM86", "SM89", "SM120"} <= set(engine.capabilities(BuildOptions(), "int8"))


def test_plans_are_for_gpus_that_know_the_precision() -> None:
    """Turing has no matmuls in fp32, which the alignment is in; fp8 came with Ada."""
    engine: Any = ENGINES["tensorrt-rtx"]
    if not torch.cuda.is_available():
        assert "SM75" not in engine.capabilities(BuildOptions(), "fp16")
        assert engine.capabilities(BuildOptions(), "fp8")[0] == "SM89"
    with pytest.raises(ExportError, match=r"compute capability 7\.5; there are 8\.0, "):
        engine.precisions(BuildOptions(compute_capabilities="7.5"))
    with pytest.raises(ExportError, match=r"fp8 .*compute capability 8\.6; there are 8\.9, "):
        engine.capabilities(BuildOptions(compute_capabilities="8.6,8.9"), "fp8")


class Recorded:
    """An engine of TensorRT-RTX on a GPU that is not here: what it is asked for."""

    def __init__(self) -> None:
        self.configs: list[Recorded] = []
        self.contexts: list[Recorded] = []
        self.kernels = b""

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
    for name in OF_RTX:
        assert hasattr(trt, name) or hasattr(trt.IBuilderConfig, name)
