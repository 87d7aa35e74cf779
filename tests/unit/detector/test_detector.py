"""The detector against outputs of the original code, where those are, and its files."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from teran.detector import DetectorConfig, RegionDetector
from teran.detector.decode import decode
from teran.detector.photo import prepared, scale_of
from teran.detector.pooling import roi_pool
from teran.detector.proposals import anchors, propose
from teran.detector.random import random_detector
from teran.detector.regions import choose
from teran.errors import CheckpointError
from tests.conftest import REFERENCE

FOLDER = REFERENCE / "detector"
PHOTOS = REFERENCE.parent / "data" / "caffe10" / "images"
CONFIG = DetectorConfig(50, 16, 64, 16, 64, 60, 20, 300, 500, 2000, 80)
needs_reference = pytest.mark.skipif(not FOLDER.is_dir(), reason="no outputs of the original here")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def formula() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formula", FOLDER / "formula.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> Any:
    with np.load(FOLDER / "reference.npz") as file:
        return {name: file[name] for name in file.files}


def hf_names(config: DetectorConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a detector that matters here, in the layout with the background last."""
    shapes = {}
    for name, value in RegionDetector(config).state_dict().items():
        if name == "anchors":
            continue
        theirs = (
            name.replace("proposal_network.backbone", "backbone")
            .replace("proposal_network.rpn_head", "proposal_generator.rpn_head")
            .replace("region_network.res5", "roi_heads.res5")
            .replace("region_network.cls_score", "roi_heads.box_predictor.cls_score")
        )
        half = "objectness_logits" in name
        shapes[theirs] = (len(value) // 2, *value.shape[1:]) if half else tuple(value.shape)
    return shapes


def by_formula(formula: ModuleType, reference: Any, config: DetectorConfig, size: str) -> Weights:
    weights = {name: formula.weight(name, shape) for name, shape in hf_names(config).items()}
    bias = "roi_heads.box_predictor.cls_score.bias"
    weights[bias] = reference[f"cls_score_bias_{size}"].astype(np.float32)
    return {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}


@pytest.fixture(scope="module")
def hf_weights(formula: ModuleType, reference: Any) -> Weights:
    return by_formula(formula, reference, CONFIG, "small")


def milvlg(weights: Weights) -> Weights:
    """The same in Caffe's layout."""
    result, order = dict(weights), [size * 3 + ratio for ratio in range(3) for size in range(4)]
    for kind in ("weight", "bias"):
        head = "proposal_generator.rpn_head"
        foreground = weights[f"{head}.objectness_logits.{kind}"][order]
        result[f"{head}.objectness_logits.{kind}"] = torch.cat([0 * foreground, foreground])
        deltas = weights[f"{head}.anchor_deltas.{kind}"]
        result[f"{head}.anchor_deltas.{kind}"] = deltas.unflatten(0, (12, 4))[order].flatten(0, 1)
        classes = weights[f"roi_heads.box_predictor.cls_score.{kind}"]
        result[f"roi_heads.box_predictor.cls_score.{kind}"] = torch.cat(
            [classes[-1:], classes[:-1]]
        )
    result["proposal_generator.anchor_generator.cell_anchors.0"] = torch.from_numpy(anchors())
    return result


@pytest.fixture(scope="module")
def detector(hf_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> RegionDetector:
    path = tmp_path_factory.mktemp("detector") / "hf.safetensors"
    save_file(hf_weights, path)
    return RegionDetector.from_checkpoint(path, CONFIG)


def same(ours: Any, theirs: Any, relative: float) -> None:
    assert np.abs(np.asarray(ours) - theirs).max() <= relative * np.abs(theirs).max()


@needs_reference
def test_every_step_is_the_originals(
    detector: RegionDetector, formula: ModuleType, reference: Any
) -> None:
    def theirs(name: str) -> Any:
        return reference[f"small_syn/bua/{name}"]

    assert (anchors() == reference["caffe_anchors"]).all()
    photo = formula.synthetic_image()[:, :, ::-1]
    scale = scale_of(photo.shape[:2], CONFIG)
    assert scale == theirs("im_scale")
    pixels = prepared(photo, scale)
    same(pixels[:, ::8, ::8], theirs("input_sub"), 1e-6)
    with torch.inference_mode():
        res4, objectness, deltas = detector.proposal_network(torch.from_numpy(pixels[None]))
        same(res4[0, ::8, ::2, ::2], theirs("res4_sub"), 1e-5)
        same(deltas[0], theirs("rpn_box"), 1e-4)
        logits = theirs("rpn_cls")
        exact = 1 / (1 + np.exp(logits[:12] - logits[12:]))
        same(objectness[0], exact, 1e-5)
        found = propose(exact, theirs("rpn_box"), anchors(), photo.shape[:2], CONFIG)
        assert found == pytest.approx(theirs("proposals"), abs=1e-2)
        cells = roi_pool(res4, torch.from_numpy(found)[None])
        features, classes = detector.region_network(cells)
        same(features, theirs("pooled_sub"), 1e-5)
        same(classes, theirs("cls_prob"), 1e-4)


@needs_reference
def test_regions_are_the_originals(
    detector: RegionDetector, formula: ModuleType, reference: Any
) -> None:
    """As a set: proposals that round to the same cells can't be told apart by their scores."""
    (found,) = detector.detect([formula.synthetic_image()[:, :, ::-1]])
    boxes, features = (reference[f"small_syn/bua/{name}"] for name in ("boxes", "features"))
    assert found.boxes.shape == (36, 4)
    distance = np.abs(found.boxes[:, None] - boxes[None]).max(axis=2)
    partner = distance.argmin(axis=1)
    assert sorted(partner) == list(range(36))
    assert distance.min(axis=1).max() < 1e-2
    same(found.features, features[partner], 1e-4)
    assert (found.labels == reference["small_syn/bua/objects_id"][partner]).all()
    assert (found.confidence >= 0).all()


@needs_reference
def test_regions_of_the_full_size_are_the_originals(
    formula: ModuleType, reference: Any, tmp_path: Path
) -> None:
    weights = by_formula(formula, reference, DetectorConfig(), "full")
    save_file(weights, tmp_path / "full.safetensors")
    detector = RegionDetector.from_checkpoint(tmp_path / "full.safetensors")
    assert detector.config == DetectorConfig()
    photo = REFERENCE.parent / "data/region_features/COCO_test2015_000000000001.jpg"
    (found,) = detector.detect([decode(photo.read_bytes())])
    theirs = {name: reference[f"full_jpg/bua/{name}"] for name in ("boxes", "keep", "max_conf")}
    distance = np.abs(found.boxes[:, None] - theirs["boxes"][None]).max(axis=2)
    partner = distance.argmin(axis=1)
    assert sorted(partner) == list(range(36))
    assert distance.min(axis=1).max() < 1e-2
    same(found.confidence, theirs["max_conf"][theirs["keep"][partner]], 1e-4)
    assert (found.labels == reference["full_jpg/bua/objects_id"][partner]).all()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no photos here")
def test_photos_go_through_the_full_size() -> None:
    """Real ones, upright and lying, of all shapes; with random weights and few proposals."""
    detector = random_detector(DetectorConfig(proposals=12, min_regions=12, max_regions=12))
    files = sorted(PHOTOS.glob("*.jpg"))
    assert len(files) == 10
    for file in files:
        pixels = decode(file.read_bytes())
        (found,) = detector.detect([pixels])
        assert found.features.shape == (12, 2048)
        assert np.isfinite(found.features).all()
        assert found.features.min() >= 0
        size = np.array([pixels.shape[1], pixels.shape[0]] * 2)
        assert ((found.boxes >= 0) & (found.boxes <= size)).all()
        assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() > 10


@needs_reference
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_public_layouts_are_read(
    hf_weights: Weights, detector: RegionDetector, suffix: str, tmp_path: Path
) -> None:
    """And without a config the architecture is that of the tensors."""
    path = tmp_path / f"model{suffix}"
    weights = milvlg(hf_weights)
    if suffix == ".pth":
        torch.save({"model": weights, "iteration": 7}, path)
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, path)
    read = RegionDetector.from_checkpoint(path)
    expected = detector.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())
    assert (read.config.depth, read.config.classes, read.config.rpn_channels) == (50, 60, 64)


def test_a_bundle_comes_back(tmp_path: Path) -> None:
    made = RegionDetector(CONFIG)
    torch.nn.init.normal_(made.region_network.cls_score.weight)
    made.save_pretrained(tmp_path)
    read = RegionDetector.from_pretrained(tmp_path)
    assert read.config == CONFIG
    expected = made.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in read.state_dict().items())


def test_files_that_are_no_detector_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        RegionDetector.from_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="can't be loaded safely"):
        RegionDetector.from_checkpoint(tmp_path / "text.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is not a detector: it has no tensor 'backbone"):
        RegionDetector.from_checkpoint(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is not a detector"):
        RegionDetector.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="depth of 50 or 101"):
        DetectorConfig(depth=34)


def test_how_many_regions_are_chosen() -> None:
    confidence = np.array([0.1, 0.9, 0.3, 0.05, 0.25], np.float32)
    apart = np.array([[100 * i, 0, 100 * i + 50, 50] for i in range(5)], np.float32)
    classes = np.stack([1 - confidence, confidence], axis=1)
    for fewest, most, expected in ((2, 4, [1, 2, 4]), (1, 2, [1, 2]), (4, 5, [1, 2, 4, 0])):
        config = DetectorConfig(min_regions=fewest, max_regions=most)
        found = choose(np.eye(5, dtype=np.float32), classes, apart, config)
        assert found.features.argmax(axis=1).tolist() == expected
        assert found.boxes.tolist() == apart[expected].tolist()
        assert found.confidence.tolist() == confidence[expected].tolist()
