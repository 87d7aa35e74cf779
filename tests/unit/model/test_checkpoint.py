"""Checkpoints of every released kind load; unsafe and damaged ones are refused in one sentence."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from teran.errors import CheckpointError
from teran.model import Pooling, TeranModel
from tests.authors import TEXT_CONFIG, authors_config, state_dict, write_checkpoint

RELEASED = [
    (dataset, mode, shared)
    for dataset in ("coco", "f30k")
    for mode, shared in (("MrSw", False), ("MwSr", False), ("symm", False), ("MrSw", True))
]


@pytest.mark.parametrize(("dataset", "mode", "shared"), RELEASED)
def test_released_configurations_load(
    tmp_path: Path, dataset: str, mode: str, shared: bool
) -> None:
    config = authors_config(mode, shared=shared, dataset=dataset)
    model = TeranModel.from_checkpoint(write_checkpoint(tmp_path / "m.pth", config), TEXT_CONFIG)
    assert model.config.pooling is Pooling(mode)
    assert (model.visual_encoder.joint is model.textual_encoder.joint) is shared
    theirs = state_dict(config, TEXT_CONFIG)
    name = "transformer_encoder_1" if shared else "transformer_encoder_2"
    torch.testing.assert_close(
        model.visual_encoder.joint.state_dict()["layers.0.expand.weight"],
        theirs[f"img_txt_enc.{name}.layers.0.linear1.weight"],
    )


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("adam", [False, True])
def test_file_formats_give_the_same_model(tmp_path: Path, legacy: bool, adam: bool) -> None:
    config = authors_config()
    plain = TeranModel.from_checkpoint(write_checkpoint(tmp_path / "a.pth", config), TEXT_CONFIG)
    path = write_checkpoint(tmp_path / "b.pth", config, legacy=legacy, adam=adam)
    other = TeranModel.from_checkpoint(path, TEXT_CONFIG)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"model": {}, "config": Attack()}
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="safely"):
        TeranModel.from_checkpoint("evil.pth")
    assert not Path("owned").exists()


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        TeranModel.from_checkpoint(tmp_path / "absent.pth")
    whole = write_checkpoint(tmp_path / "whole.pth", authors_config())
    (tmp_path / "cut.pth").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2]))
    for name in ("cut.pth", "text.pth", "list.pth"):
        with pytest.raises(CheckpointError):
            TeranModel.from_checkpoint(tmp_path / name)


def test_mismatches_name_the_tensor(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.pth", authors_config())
    with pytest.raises(CheckpointError, match="word-dim is 12"):
        TeranModel.from_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight has shape"):
        TeranModel.from_checkpoint(path, {**TEXT_CONFIG, "vocab_size": 300})
    content = torch.load(path, weights_only=False)
    del content["model"]["img_txt_enc.cap_proj.bias"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"no tensor img_txt_enc\.cap_proj\.bias"):
        TeranModel.from_checkpoint(path, TEXT_CONFIG)


def test_unknown_variants_are_refused(tmp_path: Path) -> None:
    config = authors_config()
    config["image-model"]["pos-encoding"] = "sinusoidal"
    with pytest.raises(CheckpointError, match="pos-encoding"):
        TeranModel.from_checkpoint(write_checkpoint(tmp_path / "m.pth", config), TEXT_CONFIG)


def test_bundle_round_trip(tmp_path: Path) -> None:
    for shared in (False, True):
        config = authors_config(shared=shared)
        checkpoint = write_checkpoint(tmp_path / "m.pth", config)
        model = TeranModel.from_checkpoint(checkpoint, TEXT_CONFIG)
        model.save_pretrained(tmp_path / "bundle")
        again = TeranModel.from_pretrained(tmp_path / "bundle")
        assert again.config == model.config
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name


def test_damaged_bundles_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        TeranModel.from_pretrained(tmp_path)
    for file in tiny_bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        TeranModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(("dataset", "mode", "shared"), RELEASED)
def test_back_in_the_authors_form(tmp_path: Path, dataset: str, mode: str, shared: bool) -> None:
    """Every tensor that reaches a score is there again, under their name, to the bit."""
    config = authors_config(mode, shared=shared, dataset=dataset)
    model = TeranModel.from_checkpoint(write_checkpoint(tmp_path / "m.pth", config), TEXT_CONFIG)
    model.save_checkpoint(tmp_path / "again.pth")
    content = torch.load(tmp_path / "again.pth", weights_only=False)
    theirs = state_dict(config, TEXT_CONFIG)
    for name, tensor in content["model"].items():
        assert torch.equal(tensor, theirs[name]), name
    unused = ("txt_enc.word_embeddings", "txt_enc.map", "img_enc.fc", "pooler")
    missing = theirs.keys() - content["model"].keys()
    assert all(any(part in name for part in unused) for name in missing), missing
    for section in ("text-model", "image-model", "model"):
        common = config[section].keys() & content["config"][section].keys()
        assert {key: config[section][key] for key in common} == {
            key: content["config"][section][key] for key in common
        }
    again = TeranModel.from_checkpoint(tmp_path / "again.pth", TEXT_CONFIG)
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_what_the_authors_code_has_no_place_for_is_refused(
    tiny_model: TeranModel, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="its feedforward_dim is 32, theirs is always 2048"):
        tiny_model.save_checkpoint(tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())
    path = write_checkpoint(tmp_path / "m.pth", authors_config())
    model = TeranModel.from_checkpoint(path, TEXT_CONFIG)
    with pytest.raises(CheckpointError, match="can't write"):
        model.save_checkpoint(tmp_path / "absent" / "m.pth")
