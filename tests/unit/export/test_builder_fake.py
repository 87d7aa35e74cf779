"""The builder of plans on a fake: what it asks for, and failures that can't be provoked."""

from pathlib import Path

import pytest
from teran_export.graphs import VISUAL_ENCODER
from teran_export.options import BuildOptions
from teran_export.tensorrt.builder import build_plan
from teran_export.tensorrt.profiles import profiles

from teran.errors import ExportError
from tests.conftest import TINY
from tests.fakes.tensorrt import FakeTensorRt


def built(trt: FakeTensorRt, work: Path, options: BuildOptions | None = None) -> list[str]:
    """Build a plan with a fake; returns what was reported."""
    told: list[str] = []
    build_plan(
        trt,
        work / "visual_encoder.onnx",
        work / "model.plan",
        profiles(VISUAL_ENCODER, TINY, 8, 96, 128),
        options or BuildOptions(),
        work / "timing.cache",
        told.append,
    )
    return told


def test_builder_asks_for_what_was_chosen(tmp_path: Path) -> None:
    trt = FakeTensorRt()
    told = built(trt, tmp_path, BuildOptions(1 << 10, 5, True, True))
    assert ("create_network", 1 << 1) in trt.calls, "10.x needs the strongly typed flag"
    assert ("set_memory_pool_limit", "WORKSPACE", 1 << 30) in trt.calls
    assert ("set_flag", "VERSION_COMPATIBLE") in trt.calls
    assert trt.config.builder_optimization_level == 5
    assert trt.config.hardware_compatibility_level.name == "AMPERE_PLUS"
    shapes = [call[1:] for call in trt.calls if call[:2] == ("set_shape", "boxes")]
    assert shapes == [
        ("boxes", (1, 1, 4), (1, 36, 4), (1, 128, 4)),
        ("boxes", (2, 1, 4), (8, 36, 4), (8, 128, 4)),
    ]
    assert (tmp_path / "model.plan").read_bytes() == b"a plan"
    assert any("Building engine, 20 of 40" in line for line in told)


def test_builder_sets_no_flag_it_need_not(tmp_path: Path) -> None:
    trt = FakeTensorRt(version="11.4.0")
    built(trt, tmp_path)
    assert ("create_network", 0) in trt.calls
    assert not [call for call in trt.calls if call[0] == "set_flag"]
    assert trt.config.hardware_compatibility_level is None


def test_timing_cache_is_used_again(tmp_path: Path) -> None:
    built(FakeTensorRt(), tmp_path)
    assert (tmp_path / "timing.cache").read_bytes() == b"+measured"
    again = FakeTensorRt()
    built(again, tmp_path)
    assert ("set_timing_cache", b"+measured") in again.calls


def test_a_layer_without_a_kernel_is_named(tmp_path: Path) -> None:
    trt = FakeTensorRt(build_errors=["Could not find any implementation for node [ffn/MatMul]"])
    with pytest.raises(ExportError, match=r"encoder\.onnx at layer ffn/MatMul: Could not find"):
        built(trt, tmp_path)
    assert not (tmp_path / "model.plan").exists()
    assert not (tmp_path / "timing.cache").exists()
