"""TensorRT without TensorRT: the graphs it would get, and the code that would build them.

Tests marked `tensorrt` build and run real engines, where TensorRT and a GPU are.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from teran_export import ExportOptions, export
from teran_export.engines import ENGINES
from teran_export.engines.base import Source
from teran_export.engines.tensorrt import TensorRtEngine, typed_graph
from teran_export.gate import MIN_COSINE
from teran_export.graphs import (
    ALIGNMENT,
    GRAPHS,
    TEXTUAL_ENCODER,
    VISUAL_ENCODER,
    Arrays,
    Graph,
    random_inputs,
)
from teran_export.limits import MAX_CELLS
from teran_export.options import BuildOptions, Limits
from teran_export.tensorrt.builder import build_plan
from teran_export.tensorrt.profiles import Range, profiles
from teran_export.tensorrt.quantize import quantize
from tritonclient.grpc import model_config_pb2 as pb

from teran.errors import ExportError
from teran.model import TeranModel
from tests.conftest import TINY
from tests.fakes import bindings
from tests.fakes.tensorrt import FakeTensorRt

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
ENCODERS = (VISUAL_ENCODER, TEXTUAL_ENCODER)
try:
    import tensorrt_rtx_bindings as rtx
except ImportError:
    rtx = None
has_tensorrt = importlib.util.find_spec("tensorrt") is not None and torch.cuda.is_available()


def source_of(graph: Graph, model: TeranModel, work: Path) -> Source:
    return Source(graph, graph.path(work), model, Limits(8, 16))


def samples(graph: Graph) -> list[dict[str, np.ndarray]]:
    if graph is ALIGNMENT:
        return []
    return [random_inputs(graph, TINY, (8, 16), seed) for seed in range(8)]


Typed = Callable[[Graph, str], tuple[Source, Path]]


@pytest.fixture(scope="module")
def typed(tiny_model: TeranModel, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """The typed graph of a part in a precision, written once."""
    folder = tmp_path_factory.mktemp("typed")

    @cache
    def write(graph: Graph, precision: str) -> tuple[Source, Path]:
        source = source_of(graph, tiny_model, folder)
        return source, typed_graph(source, precision, samples(graph))

    return write


def reference(graph: Graph, model: TeranModel, inputs: dict[str, np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        outputs = graph.module(model)(*map(torch.from_numpy, inputs.values()))
    result: np.ndarray = (outputs[0] if isinstance(outputs, tuple) else outputs).numpy()
    return result


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_tensorrt_can_take_every_graph(
    graph: Graph, precision: str, typed: Typed, tmp_path: Path
) -> None:
    """NVIDIA's own builder does, where TensorRT-RTX is; and the types are the asked ones."""
    if graph is ALIGNMENT and precision in ("int8", "fp8"):
        pytest.skip("the alignment decides the ranking: it is built in fp32 only")
    source, path = typed(graph, precision)
    model = onnx.load(path)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    wanted = {"fp32": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16}.get(
        precision, TensorProto.FLOAT16
    )
    for node in inferred.graph.node:
        if node.op_type == "MatMul" and graph is not ALIGNMENT:
            assert types[node.output[0]] == wanted, node.name
        if node.op_type in ("LayerNormalization", "Softmax", "ReduceL2"):
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
    for value in model.graph.output:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    quantized = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    assert (quantized > 0) == (precision in ("int8", "fp8"))
    if rtx is not None:
        chosen = TensorRtEngine().profiles(source)
        plan = tmp_path / "model.plan"
        build_plan(rtx, path, plan, chosen, BuildOptions(), source.timing_cache)
        assert plan.stat().st_size > path.stat().st_size / 8


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.99999), ("fp16", 0.9999), ("int8", 0.99), ("fp8", 0.95)]
)
@pytest.mark.parametrize("graph", ENCODERS, ids=lambda graph: graph.name)
def test_graphs_give_the_models_embeddings(
    graph: Graph, precision: str, least: float, tiny_model: TeranModel, typed: Typed
) -> None:
    _, path = typed(graph, precision)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = random_inputs(graph, TINY, (3, 20), seed=99)
    result, expected = session.run(None, inputs)[0], reference(graph, tiny_model, inputs)
    mask = np.abs(expected).max(-1) > 0
    cosine = (result * expected).sum(-1)[mask] / np.linalg.norm(result, axis=-1)[mask]
    assert cosine.mean() > least
    assert not result[~mask].any()


@pytest.mark.parametrize(("precision", "end"), [("int8", 127), ("fp8", 448)])
def test_scales_follow_the_largest_values(precision: str, end: float, tmp_path: Path) -> None:
    """Of samples of any shapes; of the weights those of a channel in int8, and all in fp8."""
    weight = np.array([[1, -2], [0.5, 0.25], [0, 0]], np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "linear")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", size])
        for name, size in (("x", 3), ("y", 2))
    ]
    graph = helper.make_graph(
        [node], "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "float.onnx",
    )
    few = np.full((1, 3), -9, np.float16)
    seen: list[Arrays] = [{"x": np.full((4, 3), 3, np.float16)}, {"x": few}]
    quantize(tmp_path / "float.onnx", tmp_path / "few.onnx", precision, seen)
    made = onnx.load(tmp_path / "few.onnx")
    scales = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in made.graph.initializer
        if tensor.name.endswith(".scale")
    }
    assert scales["x.scale"] == pytest.approx(9 / end, rel=1e-3)
    largest = [1, 2] if precision == "int8" else 2
    assert scales["w.scale"] == pytest.approx(np.divide(largest, end), rel=1e-3)
    session = onnxruntime.InferenceSession(
        tmp_path / "few.onnx", providers=["CPUExecutionProvider"]
    )
    result = session.run(None, seen[1])[0]
    assert result == pytest.approx(few @ weight, rel=0.05)
    with pytest.raises(ExportError, match="no samples"):
        quantize(tmp_path / "float.onnx", tmp_path / "few.onnx", precision, [])


@pytest.mark.parametrize(("largest", "least"), [(33.0, 0.999), (1000.0, MIN_COSINE)])
def test_fp16_does_not_overflow(
    largest: float, least: float, tiny_model: TeranModel, typed: Typed
) -> None:
    """Real features reach 33; a detector gone wrong may say more, and must still pass the gate."""
    _, path = typed(VISUAL_ENCODER, "fp16")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = random_inputs(VISUAL_ENCODER, TINY, (4, 36), seed=1)
    features = inputs["region_features"].astype(np.float32)
    inputs["region_features"] = features * np.float32(largest / features.max())
    result = session.run(None, inputs)[0]
    expected = reference(VISUAL_ENCODER, tiny_model, inputs)
    assert np.isfinite(result).all()
    mask = np.abs(expected).max(-1) > 0
    assert (result * expected).sum(-1)[mask].min() > least


def test_profiles_follow_the_traffic() -> None:
    latency, throughput = profiles(TEXTUAL_ENCODER, TINY, 64, 96, 128)
    assert latency["input_ids"] == Range((1, 8), (1, 16), (1, 96))
    assert throughput["word_mask"] == Range((2, 8), (64, 16), (64, 96))
    latency, throughput = profiles(VISUAL_ENCODER, TINY, 32, 96, 128)
    assert latency["region_features"] == Range((1, 1, 24), (1, 36, 24), (1, 128, 24))
    assert throughput["boxes"] == Range((2, 1, 4), (32, 36, 4), (32, 128, 4))
    assert len(profiles(VISUAL_ENCODER, TINY, 1, 96, 128)) == 1
    chosen = profiles(ALIGNMENT, TINY, 0, 96, 128)
    assert chosen[0]["region_embeddings"].usual == (64, 36, 16)
    for profile in chosen:
        images, regions, _ = profile["region_embeddings"].largest
        captions, words, _ = profile["word_embeddings"].largest
        assert images * regions * captions * words <= MAX_CELLS


def test_config_of_the_backend(tiny_model: TeranModel, tmp_path: Path) -> None:
    engine = TensorRtEngine()
    for graph in GRAPHS:
        config = pb.ModelConfig(name=graph.name)
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, count=1)
        source = Source(graph, graph.path(tmp_path), tiny_model, Limits(8, 16))
        engine.configure(config, source, "fp16")
        count = 3 if graph is ALIGNMENT else 2
        assert list(config.instance_group[0].profile) == [str(i) for i in range(count)]
        specs = config.optimization.cuda.graph_spec
        if graph is TEXTUAL_ENCODER:
            assert [list(spec.input["input_ids"].dim) for spec in specs] == [[16], [32]]
            assert config.dynamic_batching.default_queue_policy.max_queue_size == 16 * 16
        if graph is VISUAL_ENCODER:
            assert list(specs[0].input["region_features"].dim) == [36, 24]
            assert list(specs[0].input["region_mask"].dim) == [36]
            assert config.optimization.cuda.output_copy_stream


def test_engine_builds_each_part(
    tiny_model: TeranModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = FakeTensorRt()
    monkeypatch.setattr(TensorRtEngine, "library", lambda _: trt)
    (tmp_path / "engine").mkdir()
    source = source_of(TEXTUAL_ENCODER, tiny_model, tmp_path)
    TensorRtEngine().build(source, tmp_path / "engine", "int8", samples(TEXTUAL_ENCODER))
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["model.plan"]
    assert source.timing_cache.is_file()


def test_our_code_uses_only_names_the_bindings_have() -> None:
    """`python -m tests.fakes.bindings` reads them from the published wheels."""
    versions = json.loads(bindings.DATA.read_text())
    assert {version.split(".")[0] for version in versions} == {"10", "11"}
    for version, names in versions.items():
        assert bindings.used_names() <= set(names), version


@pytest.mark.skipif(has_tensorrt, reason="TensorRT is here")
def test_engine_without_tensorrt_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    assert ENGINES["tensorrt"].precisions() == ()
    with pytest.raises(ExportError, match="tensorrt offers nothing on this machine"):
        export(ExportOptions(tiny_bundle, tmp_path / "out", "tensorrt", "fp16"))


@pytest.mark.tensorrt
@pytest.mark.skipif(not has_tensorrt, reason="needs TensorRT and a GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_real_engines(precision: str, tiny_bundle: Path, tmp_path: Path) -> None:
    if precision not in ENGINES["tensorrt"].precisions():
        pytest.skip(f"this GPU has no {precision}")
    options = ExportOptions(tiny_bundle, tmp_path / "out", "tensorrt", precision)
    published = export(options)
    assert published.manifest.precision == precision
    assert not export(options).built
