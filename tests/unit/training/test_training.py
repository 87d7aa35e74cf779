"""The loss against the authors' and a plain loop; the loop learns, resumes and keeps the best."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from teran.errors import CheckpointError, TeranInputError
from teran.model import TeranModel
from teran.model.random import random_model
from teran.training import PairDataset, Trainer, TrainingConfig, triplet_loss
from teran.training.loop import validate
from tests.conftest import TINY, reference_archive

SCORES = arrays(np.float32, (4, 4), elements=st.floats(-3, 3, width=32))


@given(SCORES, st.floats(0, 1), st.booleans())
def test_loss_equals_plain_loop(scores: np.ndarray, margin: float, hardest: bool) -> None:
    total = 0.0
    for axis in (0, 1):
        for i in range(4):
            costs = [
                max(
                    0.0,
                    margin + float(scores[i, j] if axis else scores[j, i]) - float(scores[i, i]),
                )
                for j in range(4)
                if j != i
            ]
            total += max(costs) if hardest else sum(costs)
    ours = float(triplet_loss(torch.from_numpy(scores), margin, hardest))
    assert ours == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("hardest", [True, False])
def test_loss_equals_authors(margin: float, hardest: bool) -> None:
    archive = reference_archive("alignment_edge.npz")
    expected = float(archive[f"tripletloss_mv{int(hardest)}_margin{margin}"])
    loss = triplet_loss(torch.from_numpy(archive["S"]), margin, hardest)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def pairs(count: int, seed: int) -> PairDataset:
    """Images of one of eight kinds, each with a word of its own for the kind."""
    random = np.random.default_rng(seed)
    kinds = [i % 8 for i in range(count)]
    centres = np.random.default_rng(0).normal(0, 2, (8, TINY.feature_dim))
    features = [
        (centres[k] + random.normal(0, 0.1, (36, TINY.feature_dim))).astype(np.float32)
        for k in kinds
    ]
    boxes = [np.tile(np.array([0.1, 0.1, 0.5, 0.5], np.float32), (36, 1)) for _ in kinds]
    return PairDataset(features, boxes, [[[2, 7 + k, 12 + k, 4, 3]] for k in kinds])


CONFIG = TrainingConfig(
    epochs=8, batch_size=6, learning_rate=3e-3, optimizer="adamw", all_negatives_epochs=8, seed=5
)


def model() -> TeranModel:
    return random_model(TINY, seed=1)


def test_training_learns_and_keeps_the_best(tmp_path: Path) -> None:
    validation = pairs(8, seed=9)
    before, _ = validate(model(), validation)
    state = Trainer(model(), CONFIG, tmp_path, quiet=True).run(pairs(64, 1), validation)
    best = TeranModel.from_pretrained(tmp_path / "best")
    after, _ = validate(best, validation)
    assert after.r1 >= 87.5 > before.r1
    assert [entry["epoch"] for entry in state.history] == list(range(1, 9))
    assert state.history[-1]["loss"] < state.history[0]["loss"]


def test_resuming_equals_never_stopping(tmp_path: Path) -> None:
    train, validation = pairs(16, 1), pairs(8, 2)
    whole = Trainer(model(), CONFIG, tmp_path / "whole", quiet=True)
    whole.run(train, validation)
    first = Trainer(model(), dataclasses.replace(CONFIG, epochs=3), tmp_path / "parts", quiet=True)
    first.run(train, validation)
    second = Trainer(model(), CONFIG, tmp_path / "parts", quiet=True)
    second.resume()
    second.run(train, validation)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, rtol=0, atol=0)


def test_learning_rate_schedule(tmp_path: Path) -> None:
    config = TrainingConfig(learning_rate=1.0, step_size=2, gamma=0.1, warmup_steps=4)
    trainer = Trainer(model(), config, tmp_path)
    assert trainer.learning_rate() == pytest.approx(0.25)
    trainer.state.step = 10
    rates = []
    for epoch in range(5):
        trainer.state.epoch = epoch
        rates.append(trainer.learning_rate())
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        Trainer(model(), CONFIG, tmp_path).resume()


def test_datasets_must_pair_up() -> None:
    data = pairs(2, 0)
    with pytest.raises(TeranInputError, match="do not pair up"):
        PairDataset(data.features, data.boxes, data.captions[:1])
    with pytest.raises(TeranInputError, match="image 1 has no caption"):
        PairDataset(data.features, data.boxes, [data.captions[0], []])
