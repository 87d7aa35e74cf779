"""The builder of plans on NVIDIA's own: TensorRT-RTX builds without a GPU."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from teran_export.options import BuildOptions
from teran_export.tensorrt.builder import Built, build_plan
from teran_export.tensorrt.profiles import Range

from teran.errors import ExportError

trt: Any = pytest.importorskip("tensorrt_rtx_bindings")
RANGE = Range((1, 4), (2, 4), (8, 4))


def write(
    path: Path,
    *nodes: NodeProto,
    kind: int = TensorProto.FLOAT,
    result: int = TensorProto.FLOAT,
    weights: Sequence[TensorProto] = (),
) -> None:
    """Write a graph of x, of n rows of four numbers."""
    x = helper.make_tensor_value_info("x", kind, ["n", 4])
    y = helper.make_tensor_value_info("y", result, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    opset = helper.make_opsetid("", 21)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), path)


def build(
    work: Path, ranges: Range = RANGE, options: BuildOptions = BuildOptions()
) -> tuple[Built, list[str]]:
    """Build a plan of it; and what was reported."""
    told: list[str] = []
    plan, cache = work / "model.plan", work / "timing.cache"
    made = build_plan(trt, work / "part.onnx", plan, [{"x": ranges}], options, cache, told.append)
    return made, told


def built(
    work: Path,
    *nodes: NodeProto,
    ranges: Range = RANGE,
    options: BuildOptions = BuildOptions(),
    **graph: Any,
) -> tuple[Built, list[str]]:
    """Both."""
    write(work / "part.onnx", *nodes, **graph)
    return build(work, ranges, options)


RELU = helper.make_node("Relu", ["x"], ["y"], "relu")


def test_a_plan_is_built(tmp_path: Path) -> None:
    made, told = built(tmp_path, RELU)
    assert made.plan_bytes == (tmp_path / "model.plan").stat().st_size > 1000
    assert made.peak_host_bytes > 0
    assert "  part: Building engine" in told
    assert (tmp_path / "timing.cache").is_file()


def test_a_foreign_timing_cache_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"nonsense" * 100)
    built(tmp_path, RELU)
    own = (tmp_path / "timing.cache").read_bytes()
    assert own
    assert b"nonsense" not in own
    built(tmp_path, RELU)
    assert (tmp_path / "timing.cache").read_bytes() == own


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([helper.make_node("Det", ["x"], ["y"], "head/Det")], "can't parse part.onnx: head/Det"),
        (
            [helper.make_node("Foo", ["x"], ["y"], "foo", domain="com.microsoft")],
            "can't parse part.onnx: foo: .*Plugin not found",
        ),
        (
            [
                helper.make_node("Cast", ["x"], ["h"], "cast", to=TensorProto.FLOAT16),
                helper.make_node("Add", ["x", "h"], ["y"], "add"),
            ],
            "can't parse part.onnx: add: .*must have same input types",
        ),
    ],
)
def test_what_the_parser_can_not_take_is_named(
    nodes: list[NodeProto], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"(?s){reason}"):
        built(tmp_path, *nodes)
    assert not (tmp_path / "model.plan").exists()
    assert not (tmp_path / "timing.cache").exists()


def test_a_type_that_the_parser_does_not_have_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "x"], ["y"], "add")
    with pytest.raises(ExportError, match=r"(?s)can't parse part\.onnx: .*data type"):
        built(tmp_path, node, kind=TensorProto.UINT16, result=TensorProto.UINT16)


MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")


def weight(rows: int, columns: int) -> TensorProto:
    return numpy_helper.from_array(np.ones((rows, columns), np.float32), "w")


def test_a_plan_without_scratch_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)can't build part\.onnx: .*workspace memory"):
        built(tmp_path, MATMUL, weights=[weight(4, 64)], options=BuildOptions(workspace=0))
    assert not (tmp_path / "model.plan").exists()


def test_a_host_without_memory_is_an_error_like_any_other(tmp_path: Path) -> None:
    """In a process of its own, which may not have much more than it has."""
    large = weight(4, 1 << 22)
    write(tmp_path / "part.onnx", MATMUL, weights=[large])
    code = """
import resource, sys
from pathlib import Path
from tests.unit.export.test_builder import build
(kilobytes,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize")]
most = 1024 * int(kilobytes) + (32 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
build(Path(sys.argv[1]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stderr
    assert re.search(
        r"ExportError: TensorRT can't .*part\.onnx: .*(bad_alloc|[Mm]emory)", ran.stderr
    )
    assert not (tmp_path / "model.plan").exists()


def test_operators_whose_shapes_depend_on_values_are_refused(tmp_path: Path) -> None:
    nonzero = helper.make_node("NonZero", ["x"], ["y"], "nonzero")
    with pytest.raises(ExportError, match="nonzero"):
        built(tmp_path, nonzero, result=TensorProto.INT64)


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        (Range((4, 4), (2, 4), (8, 4)), "refuses a profile of part.onnx"),
        (Range((1, 5), (2, 5), (8, 5)), "can't build part.onnx: .*profile has .*tensor has 4"),
        (
            Range((1, 4, 1), (2, 4, 1), (8, 4, 1)),
            "can't build part.onnx: .*x has 2 dimensions but profile 0 has 3",
        ),
    ],
)
def test_profiles_that_contradict_the_graph_are_refused(
    ranges: Range, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"(?s){reason}"):
        built(tmp_path, RELU, ranges=ranges)
    assert not (tmp_path / "model.plan").exists()
