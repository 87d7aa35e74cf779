"""Every engine this host can run, served by the real Triton, gives PyTorch's results."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from teran_client import Entry, ImageRegions, TeranClient, TeranInputError
from teran_export import ExportOptions, export
from teran_export.calibration import CalibrationData
from teran_export.gate import Answers

from teran.cli.background import background_server
from teran.errors import ExportError, ServingError
from teran.model import TeranModel
from teran.model.random import random_model
from tests.conftest import TINY
from tests.data import captions, images
from tests.server.test_results import torch_caption, torch_image


def in_fp16(image: ImageRegions) -> ImageRegions:
    """The image as it is after its features have travelled."""
    return replace(image, features=image.features.astype(np.float16).astype(np.float32))


# AOTInductor compiles for minutes, so it gets both at once.
@pytest.mark.parametrize(
    ("engine", "feature_precision"), [("onnxruntime", "fp32"), ("aoti", "fp16")]
)
def test_engine_is_served(
    engine: str, feature_precision: str, tiny_bundle: Path, tiny_model: TeranModel, tmp_path: Path
) -> None:
    if engine == "aoti" and not shutil.which("g++"):
        pytest.skip("AOTInductor compiles with g++")
    options = ExportOptions(
        tiny_bundle, tmp_path / "repository", engine, "fp32", feature_precision=feature_precision
    )
    published = export(options)
    sent, said = images(20, longest=60), captions(30, longest=80)
    if feature_precision == "fp16":
        sent = [in_fp16(image) for image in sent]
    flags = ("--gallery", str(tmp_path / "gallery"))
    with (
        background_server(published.path, *flags, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=60, batch_size=7) as client,
    ):
        # Single items, and batches of several lengths that the server may join.
        for image in sent[:3]:
            expected = torch_image(tiny_model, image)
            np.testing.assert_allclose(client.encode_images(image), expected, atol=1e-4)
        for image, embeddings in zip(sent, client.encode_images(sent), strict=True):
            np.testing.assert_allclose(embeddings, torch_image(tiny_model, image), atol=1e-4)
        for caption, encoded in zip(said, client.encode_captions(said), strict=True):
            expected = torch_caption(tiny_model, caption)
            np.testing.assert_allclose(encoded.word_embeddings, expected, atol=1e-4)
        scores = client.score(sent, said)
        assert client.match(sent[0], said[0]).score == pytest.approx(scores[0, 0], abs=1e-3)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_features_travel_in_fp16(
    engine: str, tiny_bundle: Path, tiny_model: TeranModel, tmp_path: Path
) -> None:
    options = ExportOptions(
        tiny_bundle, tmp_path / "repository", engine, "fp32", feature_precision="fp16"
    )
    published, sent = export(options), images(9, longest=60)
    with (
        background_server(published.path, log=tmp_path / "log") as server,
        TeranClient(server.url, timeout=60, batch_size=4) as client,
    ):
        assert client.info().half_features
        for image, embeddings in zip(sent, client.encode_images(sent), strict=True):
            expected = torch_image(tiny_model, in_fp16(image))
            np.testing.assert_allclose(embeddings, expected, atol=1e-4)
        # Every way an image takes: ensembles, searches.
        assert client.match(sent[0], "a dog runs").score > 0
        client.index([Entry(one, f"{i}") for i, one in enumerate(sent)])
        assert client.search(sent[4], k=1).hits[0].id or client.search("a dog", k=1).hits
        assert client.search_like("4", k=1).hits[0].id == "4"
        far = replace(sent[0], features=sent[0].features + 1e5)
        with pytest.raises(TeranInputError, match="beyond fp16"):
            client.encode_images([sent[0], far])


def test_another_feature_precision_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ExportOptions(tiny_bundle, tmp_path / "out", feature_precision="fp8")
    with pytest.raises(ExportError, match="fp32 and fp16"):
        export(options)


def test_what_was_not_checked_where_it_was_built_is_checked_first(
    repository: Path, tiny_model: TeranModel, tmp_path: Path
) -> None:
    """With an engine that this host can run."""
    copy, log = tmp_path / "repository", tmp_path / "log"
    shutil.copytree(repository, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"verified": False}))
    data = CalibrationData.synthetic(TINY)
    Answers.of(tiny_model, data).save(copy / "answers.npz")
    with (
        background_server(copy, "--gallery", str(tmp_path / "gallery"), log=log) as server,
        TeranClient(server.url) as client,
    ):
        assert client.encode_captions("a dog").tokens
    assert json.loads((copy / "verified.json").read_text())["refused"] is None
    said = log.read_text()
    assert said.index("checked on") < said.index("ready: grpc")
    (copy / "verified.json").unlink()
    Answers.of(random_model(TINY, seed=4), data).save(copy / "answers.npz")
    with (
        pytest.raises(ServingError, match="visual_encoder: cosine"),
        background_server(copy, log=tmp_path / "refused"),
    ):
        pass
