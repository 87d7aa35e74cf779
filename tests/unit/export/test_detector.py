"""A detector's engines, held against PyTorch, and the gate that judges them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teran_export import ExportOptions, export
from teran_export.detector_export import read_detector
from teran_export.detector_gate import DetectorCheck, DetectorGate
from teran_export.detector_graphs import PORTABLE_REGION_NETWORK, PROPOSAL_NETWORK, REGION_NETWORK
from teran_export.engines import ENGINES
from teran_export.engines.base import Source
from teran_export.graphs import Arrays, Graph
from teran_export.onnx_graphs import write_graph
from teran_export.options import BuildOptions
from teran_export.trial import fastest

from teran.detector import DetectorConfig, RegionDetector
from teran.detector.random import random_detector
from teran.errors import ExportError

CONFIG = DetectorConfig(50, 4, 8, 4, 8, 10, 5, 96, 160, 200, 30, 6, 6)


@pytest.fixture(scope="module")
def detector() -> RegionDetector:
    return random_detector(CONFIG, seed=4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i, size in enumerate(((9, 12), (12, 8))):
        coarse = random.integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((16 * size[1], 16 * size[0])).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def gate(detector: RegionDetector, photos: Path) -> DetectorGate:
    return DetectorGate.of(detector, photos)


@pytest.fixture(scope="module")
def graphs(detector: RegionDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both networks as ONNX, checked against PyTorch as they are written."""
    folder = tmp_path_factory.mktemp("graphs")
    for graph in (PROPOSAL_NETWORK, PORTABLE_REGION_NETWORK, REGION_NETWORK):
        assert write_graph(graph, detector, folder) < graph.tolerance
    return folder


@pytest.mark.parametrize(
    ("name", "precision", "recall"),
    [
        ("openvino", "fp32", 1.0),
        ("openvino", "bf16", 0.0),
        ("openvino", "int8", 0.0),
        ("onnxruntime", "fp32", 1.0),
    ],
)
def test_engines_find_what_pytorch_finds(
    name: str,
    precision: str,
    recall: float,
    detector: RegionDetector,
    gate: DetectorGate,
    graphs: Path,
    tmp_path: Path,
) -> None:
    """Random weights choose by chance, so only in fp32 are the regions the same."""
    engine = ENGINES[name]
    if precision not in engine.precisions():
        pytest.skip(f"{name} has no {precision} here")
    regions = REGION_NETWORK if engine.starts_from_onnx else PORTABLE_REGION_NETWORK
    for graph in (PROPOSAL_NETWORK, regions):
        (tmp_path / graph.name).mkdir()
        source = Source(graph, graph.path(graphs), detector)
        samples = [sample.inputs(graph) for sample in gate.samples]
        engine.build(source, tmp_path / graph.name, precision, samples)
    check = gate.check(lambda graph: engine.load(graph, tmp_path / graph.name, precision))
    if precision == "fp32":
        assert min(check.map_cosine, check.min_cosine) > 1 - 1e-6
    assert replace(check, box_recall=None).failure() is None
    assert check.box_recall is not None
    assert check.box_recall >= recall
    assert check.milliseconds


def test_a_network_compiled_by_pytorch(
    detector: RegionDetector, gate: DetectorGate, tmp_path: Path
) -> None:
    """The second one, as compiling the first takes a minute."""
    engine, graph = ENGINES["aoti"], PORTABLE_REGION_NETWORK
    engine.build(Source(graph, graph.path(tmp_path), detector), tmp_path, "fp32", [])
    run = engine.load(graph, tmp_path, "fp32")
    for sample in gate.samples:
        found = run(sample.inputs(graph))
        assert found["proposal_features"] == pytest.approx(sample.features, rel=1e-4, abs=1e-4)
        assert found["class_scores"] == pytest.approx(sample.classes, abs=1e-5)


def test_plans_for_rtx_are_built_and_judged_by_their_graphs(
    detector: RegionDetector, gate: DetectorGate, tmp_path: Path
) -> None:
    """By the real builder, in int8; what PyTorch answered goes along to where they are served."""
    engine, options = ENGINES["tensorrt-rtx"], BuildOptions(compute_capabilities="8.9")
    if not engine.precisions(options):
        pytest.skip("no TensorRT-RTX here")
    for graph in (PROPOSAL_NETWORK, PORTABLE_REGION_NETWORK):
        (tmp_path / graph.name).mkdir()
        samples = [sample.inputs(graph) for sample in gate.samples]
        source = Source(graph, graph.path(tmp_path), detector, options=options)
        engine.build(source, tmp_path / graph.name, "int8", samples)
        assert (tmp_path / graph.name / "model.plan").stat().st_size > 100_000
    gate.save(tmp_path / "answers.npz")
    check = DetectorGate.load(tmp_path / "answers.npz").check(
        lambda graph: engine.load(graph, tmp_path / graph.name, "int8")
    )
    assert replace(check, box_recall=None).failure() is None
    (tmp_path / "answers.npz").write_bytes(b"damaged")
    with pytest.raises(ExportError, match="can't be read"):
        DetectorGate.load(tmp_path / "answers.npz")


def test_an_engine_that_errs_is_refused(gate: DetectorGate) -> None:
    def load(graph: Graph) -> Any:
        def run(inputs: Mapping[str, Any]) -> Arrays:
            sample = next(
                one for one in gate.samples if one.inputs(graph).keys() == inputs.keys()
                and one.inputs(graph)[next(iter(inputs))].shape == inputs[next(iter(inputs))].shape
            )  # fmt: skip
            if graph == PROPOSAL_NETWORK:
                cells = sample.res4.shape[2:]
                return {
                    "res4": -sample.res4,
                    "objectness": np.full((1, 12, *cells), 0.5, np.float32),
                    "deltas": np.zeros((1, 48, *cells), np.float32),
                }
            count = inputs["proposals"].shape[1]
            return {
                "proposal_features": np.ones((1, count, CONFIG.feature_dim), np.float32),
                "class_scores": np.full((1, count, 1 + CONFIG.classes), 0.05, np.float32),
            }

        return run

    check = gate.check(load)
    assert "cosines: -1.0000 of the map" in str(check.failure())
    assert fastest({"int8": check}) is None
    good = DetectorCheck(1.0, 1.0, 1.0, 1.0, 9.0)
    few = replace(good, box_recall=0.8, milliseconds=1.0)
    assert "it finds 80.0% of the regions; 90% are needed" in str(few.failure())
    assert fastest({"fp32": good, "int8": few, "bf16": replace(good, milliseconds=5.0)}) == ("bf16")


def test_what_does_not_fit_is_refused_before_anything_is_built(
    detector: RegionDetector, tiny_bundle: Path, tmp_path: Path
) -> None:
    detector.save_pretrained(tmp_path / "detector")
    options = ExportOptions(
        tiny_bundle, tmp_path / "out", "openvino", "fp32", detector=tmp_path / "detector"
    )
    with pytest.raises(ExportError, match="features of 64 values, the model takes 24"):
        export(options)
    fewer = read_detector(replace(options, proposals=10), CONFIG.feature_dim)
    assert fewer is not None
    assert fewer.config.proposals == 10
    with pytest.raises(ExportError, match="holds no photos"):
        DetectorGate.of(detector, tmp_path)
    (tmp_path / "broken.png").write_text("nothing")
    with pytest.raises(ExportError, match=r"broken\.png can't be used: not a photo"):
        DetectorGate.of(detector, tmp_path)
