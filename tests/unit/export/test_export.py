"""Bundles become checked graphs and complete repositories, or nothing changes."""

import base64
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from teran_export import ExportOptions, export, publish
from teran_export.calibration import CalibrationData
from teran_export.engines import ENGINES
from teran_export.engines.base import Run, Source
from teran_export.gate import Answers, EncoderCheck, Gate
from teran_export.graphs import (
    ALIGNMENT,
    GRAPHS,
    TEXTUAL_ENCODER,
    VISUAL_ENCODER,
    Arrays,
    Graph,
    random_inputs,
)
from teran_export.onnx_graphs import check_graph, write_graph
from teran_export.sensitivity import GROUPS, keep_in_float
from torch import nn

from teran.errors import CheckpointError, ExportError, TeranInputError
from teran.model import Pooling, TeranModel
from teran.runtime.silent_openvino import openvino
from tests.conftest import TINY
from tests.datasets import write_dataset


@pytest.fixture(scope="module")
def graphs(tiny_model: TeranModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("graphs")
    for graph in GRAPHS:
        assert write_graph(graph, tiny_model, directory) <= graph.tolerance
    return directory


@pytest.fixture(scope="module")
def published(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "repository"
    result = export(ExportOptions(tiny_bundle, out, "onnxruntime"))
    assert result.built
    return out


def test_graphs_keep_every_layer(graphs: Path) -> None:
    """Layers with different weights must not have been merged."""
    model = onnx.load(VISUAL_ENCODER.path(graphs))
    layers = TINY.visual_layers + TINY.joint_layers
    matmuls = sum(node.op_type in ("MatMul", "Gemm") for node in model.graph.node)
    assert matmuls == layers * 6 + 4
    assert any("transformer.layers.1.attention.qkv" in node.name for node in model.graph.node)


@pytest.mark.parametrize("mode", list(Pooling))
def test_alignment_graph_of_every_pooling(tmp_path: Path, mode: Pooling) -> None:
    model = TeranModel(dataclasses.replace(TINY, pooling=mode))
    assert write_graph(ALIGNMENT, model, tmp_path) < 1e-3


def test_a_wrong_graph_is_noticed(graphs: Path) -> None:
    other = TeranModel(TINY).eval()
    module = TEXTUAL_ENCODER.module(other)
    assert isinstance(module, nn.Module)
    error = check_graph(TEXTUAL_ENCODER, module, TINY, TEXTUAL_ENCODER.path(graphs))
    assert error > TEXTUAL_ENCODER.tolerance


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_every_precision_gives_the_models_embeddings(
    graphs: Path, tiny_model: TeranModel, tmp_path: Path, engine: str
) -> None:
    for precision in ENGINES[engine].precisions():
        for graph in (VISUAL_ENCODER, TEXTUAL_ENCODER):
            folder = tmp_path / f"{precision}-{graph.name}"
            folder.mkdir()
            samples = [random_inputs(graph, TINY, (8, 16), seed) for seed in range(8)]
            source = Source(graph, graph.path(graphs), tiny_model)
            ENGINES[engine].build(source, folder, precision, samples)
            inputs = random_inputs(graph, TINY, (3, 20), seed=99)
            result = ENGINES[engine].load(graph, folder, precision)(inputs)[graph.outputs[0]]
            module = graph.module(tiny_model)
            with torch.inference_mode():
                expected = module(*map(torch.from_numpy, inputs.values())).numpy()
            mask = np.abs(expected).max(-1) > 0
            ours, theirs = result[mask], expected[mask]
            cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1)
            assert cosine.mean() > {"fp32": 0.99999, "bf16": 0.999, "int8": 0.95}[precision]
            assert not result[~mask].any()


def test_published_repository_is_complete(published: Path) -> None:
    manifest = json.loads((published / "manifest.json").read_text())
    assert manifest["precision"] == "fp32"
    assert set(manifest["graphs"]) == {graph.name for graph in GRAPHS}
    assert manifest["checks"]["fp32"]["refused"] is None
    for name, size in manifest["files"].items():
        assert (published / name).stat().st_size == size
    assert {path.parent.name for path in published.glob("*/config.pbtxt")} == {
        *("tokenizer", "visual_encoder", "textual_encoder"),
        *("alignment", "encode_caption", "encode_image", "match", "gallery"),
        *("index", "search", "index_captions", "search_captions"),
        *("admission", "stored", "change"),
    }


def test_unchanged_request_is_a_no_op_and_changes_are_noticed(
    published: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(tiny_bundle, published, "onnxruntime")
    before = published.resolve()
    assert not export(options).built
    assert published.resolve() == before

    class BuiltError(Exception):
        pass

    def build(*_: object) -> None:
        raise BuiltError

    monkeypatch.setattr(publish, "_build", build)
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert not export(dataclasses.replace(options, bundle=bundle)).built
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps({**config, "pooling": "symm"}))
    changes = (
        dataclasses.replace(options, bundle=bundle),
        dataclasses.replace(options, precision="fp32"),
        dataclasses.replace(options, engine="openvino"),
        dataclasses.replace(options, force=True),
    )
    for changed in changes:
        with pytest.raises(BuiltError):
            export(changed)
    monkeypatch.setattr("teran.__version__", "99")
    with pytest.raises(BuiltError):
        export(options)


def test_incomplete_repository_is_rebuilt(
    tiny_bundle: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = published / "visual_encoder" / "1" / "model.onnx"
    content = engine.read_bytes()
    engine.write_bytes(content[:-1])
    try:
        monkeypatch.setattr(publish, "_build", lambda *_: pytest.fail("expected"))
        with pytest.raises(pytest.fail.Exception, match="expected"):
            export(ExportOptions(tiny_bundle, published, "onnxruntime"))
    finally:
        engine.write_bytes(content)


def test_failure_leaves_what_was_published(
    tiny_bundle: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, siblings = published.resolve(), sorted(published.parent.iterdir())
    monkeypatch.setattr("teran_export.gate.MIN_MEAN_COSINE", 1.1)
    options = ExportOptions(tiny_bundle, published, "onnxruntime", force=True)
    with pytest.raises(
        ExportError, match=r"no precision of the encoders for \w+ passed: fp32: visual"
    ):
        export(options)
    assert published.resolve() == before
    assert sorted(published.parent.iterdir()) == siblings


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": "abacus"}, "no engine 'abacus'; there are openvino, onnxruntime"),
        ({"precision": "fp64"}, "onnxruntime offers fp32 on this machine, not 'fp64'"),
    ],
)
def test_impossible_requests(
    tiny_bundle: Path, tmp_path: Path, changes: dict[str, str], reason: str
) -> None:
    options = ExportOptions(tiny_bundle, tmp_path / "out", "onnxruntime")
    with pytest.raises(ExportError, match=reason):
        export(dataclasses.replace(options, **changes))  # type: ignore[arg-type]


def test_foreign_directories_are_not_overwritten(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ExportError, match="was not published by this command"):
        export(ExportOptions(tiny_bundle, tmp_path / "mine", "onnxruntime"))


def test_bundle_without_tokenizer(tmp_path: Path) -> None:
    TeranModel(TINY).save_pretrained(tmp_path / "bundle")
    with pytest.raises(ExportError, match=r"no tokenizer\.json"):
        export(ExportOptions(tmp_path / "bundle", tmp_path / "out", "onnxruntime"))
    with pytest.raises(CheckpointError, match="not a bundle"):
        export(ExportOptions(tmp_path / "nothing", tmp_path / "out", "onnxruntime"))


def test_gate_sees_a_worse_engine(tiny_model: TeranModel, tmp_path: Path) -> None:
    assert tiny_model.tokenizer is not None
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "data.npz",
        region_features=random.exponential(1.0, (12, 36, TINY.feature_dim)),
        boxes=np.tile(np.array([0.1, 0.1, 0.6, 0.7]), (12, 36, 1)),
        region_mask=np.ones((12, 36), bool),
        captions=np.array([f"a dog {'abcdefghijkl'[i]} runs" for i in range(12)]),
        image_of_caption=np.arange(12),
    )
    data = CalibrationData.load(tmp_path / "data.npz", TINY, tiny_model.tokenizer)
    gate = Gate(Answers.of(tiny_model, data))
    modules = {graph: graph.module(tiny_model) for graph in (VISUAL_ENCODER, TEXTUAL_ENCODER)}

    def noisy(amount: float) -> Callable[[Graph], Run]:
        def load(graph: Graph) -> Run:
            def run(inputs: Arrays) -> Arrays:
                tensors = [torch.from_numpy(inputs[name]) for name in graph.inputs]
                with torch.inference_mode():
                    result = modules[graph](*tensors).numpy()
                noise = np.random.default_rng(1).standard_normal(result.shape)
                return {graph.outputs[0]: (result + amount * noise).astype(np.float32)}

            return run

        return load

    good, bad = gate.check(noisy(0.0)), gate.check(noisy(0.3))
    assert good.failure() is None
    assert good.worst_loss == 0.0
    assert "cosine" in (bad.failure() or "")


def test_layers_are_kept_in_float_by_measured_effect() -> None:
    harm = dict.fromkeys(GROUPS, 0.001) | {"contract": 0.03, "expand": 0.01}
    tried = []

    def build(groups: tuple[str, ...]) -> EncoderCheck:
        tried.append(groups)
        cosine = 1.0 - sum(loss for group, loss in harm.items() if group not in groups)
        return EncoderCheck(cosine, 0.96, 0.1, 1.0)

    assert keep_in_float(build) == ("contract", "expand")
    assert tried[-1] == ("contract", "expand"), "what is served must be what was chosen"


def test_int8_keeps_named_layers_in_float(
    graphs: Path, tiny_model: TeranModel, tmp_path: Path
) -> None:
    def quantised(*kept: str) -> int:
        samples = [random_inputs(TEXTUAL_ENCODER, TINY, (8, 16), seed) for seed in range(4)]
        folder = tmp_path / "-".join(("int8", *kept)).replace("/", "")
        folder.mkdir()
        path = TEXTUAL_ENCODER.path(graphs)
        source = Source(TEXTUAL_ENCODER, path, tiny_model, kept_in_float=kept)
        ENGINES["openvino"].build(source, folder, "int8", samples)
        model = openvino.Core().read_model(folder / "model.xml")
        return sum(
            op.get_type_name() == "Constant" and op.get_element_type() == openvino.Type.i8
            for op in model.get_ops()
        )

    layers = TINY.text.num_hidden_layers + TINY.joint_layers
    whole = quantised()
    assert whole >= layers * 4
    assert quantised("contract") == whole - layers
    assert quantised("contract", "expand") == whole - 2 * layers


@pytest.mark.parametrize("damage", ["missing", "text", "keys", "width"])
def test_unusable_calibration(tiny_model: TeranModel, tmp_path: Path, damage: str) -> None:
    assert tiny_model.tokenizer is not None
    path = tmp_path / "data.npz"
    if damage == "text":
        path.write_text("nothing")
    elif damage == "keys":
        np.savez(path, captions=np.array(["a dog"]))
    elif damage == "width":
        np.savez(
            path,
            region_features=np.zeros((1, 2, 5)),
            boxes=np.zeros((1, 2, 4)),
            region_mask=np.ones((1, 2)),
            captions=np.array(["a dog"]),
            image_of_caption=np.zeros(1),
        )
    with pytest.raises(ExportError, match=r"data\.npz"):
        CalibrationData.load(path, TINY, tiny_model.tokenizer)


def test_an_engine_that_loses_recall_on_a_data_set_is_not_published(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What every precision loses is in the manifest; one point more than allowed is too much."""
    data = tmp_path / "data"
    write_dataset(data, 210)
    options = ExportOptions(
        tiny_bundle, tmp_path / "repository", precision="fp32", gate=data, gate_split="test"
    )
    published = export(options)
    check = published.manifest.checks["fp32"]
    assert check["judged_on"] == "f30k test, 210 images"
    names = {f"{kind}_r{k}" for kind in ("image", "sentence") for k in (1, 5, 10)}
    assert check["recall_loss"].keys() == names
    assert max(map(abs, check["recall_loss"].values())) < 0.5
    assert not export(options).built, "nothing has changed"
    assert export(replace(options, max_loss=1.0)).built, "what is allowed has"

    calls = count()  # PyTorch's ranks first, then the engine's
    monkeypatch.setattr(
        "teran_export.gate.caption_ranks", lambda *_: np.full(210, 300 * (next(calls) > 0))
    )
    with pytest.raises(ExportError, match=r"sentence_r1 is 100\.00 points below fp32's, more than"):
        export(replace(options, max_loss=2.0))
    assert (tmp_path / "repository" / "manifest.json").is_file(), "what was published stays"
    with pytest.raises(TeranInputError, match="no images in its split 'val'"):
        export(replace(options, gate_split="val"))


def test_real_regions_without_captions_calibrate_too(
    tiny_bundle: Path, tiny_model: TeranModel, tmp_path: Path
) -> None:
    """As in a table of bottom-up attention's; int8 is then made only where it is asked for."""
    random, lines = np.random.default_rng(0), []
    for i in range(12):
        features = random.exponential(2.0, (20 + i, TINY.feature_dim)).astype(np.float32)
        boxes = np.tile(np.array([1, 2, 60, 50], np.float32), (20 + i, 1))
        arrays = (base64.b64encode(one.tobytes()).decode() for one in (boxes, features))
        lines.append("\t".join([f"COCO_val2014_{i:012d}", "80", "60", str(20 + i), *arrays]))
    table = tmp_path / "regions.tsv"
    table.write_text("\n".join(lines) + "\n")
    assert tiny_model.tokenizer
    data = CalibrationData.load(table, TINY, tiny_model.tokenizer)
    assert data.images["region_mask"].sum(axis=1).tolist() == list(range(20, 32))
    assert data.image_of_caption is None
    options = ExportOptions(tiny_bundle, tmp_path / "repository", calibration=table)
    assert "int8" not in export(options).manifest.checks
    check = export(replace(options, precision="int8")).manifest.checks["int8"]
    assert (check["calibration"], check["recall_loss"]) == ("regions.tsv", None)
    table.write_text(lines[0][:-3] + "\n")
    with pytest.raises(TeranInputError, match=r"regions\.tsv: the line of image 0"):
        export(replace(options, precision="int8"))
