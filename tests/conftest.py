"""What tests share: a tiny model, its bundle, and the authors' outputs where present."""

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from teran_export import ExportOptions, export

from teran.model import TeranConfig, TeranModel, TextConfig
from teran.model.random import random_model
from teran.tokenizer import wordpiece_tokenizer

REFERENCE = Path(
    os.environ.get("TERAN_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)
WORDS = "a and the of on dog cat red blue ball box runs two man woman beach left ##s ##ing".split()  # noqa: SIM905
TINY = TeranConfig(
    feature_dim=24,
    embed_dim=16,
    visual_layers=2,
    joint_layers=1,
    feedforward_dim=32,
    text=TextConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=96,
    ),
)


def tiny_vocabulary() -> dict[str, int]:
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ",", "!", *WORDS, *letters]
    unique = list(dict.fromkeys(tokens))
    unique += [f"[unused{i}]" for i in range(TINY.text.vocab_size - len(unique))]
    return {token: index for index, token in enumerate(unique)}


def pytest_configure() -> None:
    """Have Ctrl-C reach what tests start, also where they run in the background of a script.

    Nor does an example fail for its time: a host may be slow.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("any time", deadline=None)
    settings.load_profile("any time")


@pytest.fixture(scope="session")
def tiny_model() -> TeranModel:
    model = random_model(TINY, seed=3)
    model.tokenizer = wordpiece_tokenizer(tiny_vocabulary())
    return model


@pytest.fixture(scope="session")
def tiny_bundle(tiny_model: TeranModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle")
    tiny_model.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Reference:
    """One batch of the authors' outputs, batch-first and without the image's CLS slot."""

    values: Mapping[str, Any]
    prefix: str

    def __getitem__(self, key: str) -> torch.Tensor:
        return torch.from_numpy(self.values[self.prefix + key])

    @property
    def region_mask(self) -> torch.Tensor:
        return torch.arange(36)[None] < (self["img_len"] - 1)[:, None]

    @property
    def attention_mask(self) -> torch.Tensor:
        return (torch.arange(self["ids"].shape[1])[None] < self["cap_len"][:, None]).long()

    def encode(self, model: TeranModel) -> tuple[torch.Tensor, torch.Tensor]:
        regions = model.encode_images(self["images"][:, 1:], self["boxes"][:, 1:], self.region_mask)
        return regions, model.encode_captions(self["ids"], self.attention_mask)


def reference_archive(name: str) -> Mapping[str, Any]:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"no reference outputs at {path}")
    return dict(np.load(path))


def reference_configs(archive: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads(str(archive["config"])), json.loads(str(archive["bert_config"]))


@pytest.fixture(scope="session")
def tiny_repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model for OpenVINO in fp32, so that results can be compared closely."""
    out = tmp_path_factory.mktemp("published") / "repository"
    return export(ExportOptions(tiny_bundle, out, "openvino", "fp32")).path


@pytest.fixture(scope="session")
def repository(tiny_repository: Path) -> Path:
    """What is served, unless a module says otherwise."""
    return tiny_repository
