"""The loss against the authors' and a plain loop; the loop learns, resumes and keeps the best."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from teran.errors import CheckpointError, TeranError, TeranInputError
from teran.model import TeranModel
from teran.model.random import random_model
from teran.training import PairDataset, Trainer, TrainingConfig, triplet_loss
from teran.training.loop import validate
from tests.conftest import TINY, reference_archive
from tests.unit.training.data import pairs

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


def test_two_processes_learn_what_one_does_from_the_double_batch(tmp_path: Path) -> None:
    """With batches that don't divide evenly; a run that goes on learns the same to the bit."""

    def run(out: Path, processes: int, batch: int, epochs: int) -> None:
        out.mkdir(exist_ok=True)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = ["-m", "tests.unit.training.run", str(out), str(batch), str(epochs)]
        line = [sys.executable, *launcher, *script]
        ended = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
        assert ended.returncode == 0, ended.stderr

    def losses(out: Path) -> list[float]:
        return [float(row.split(",")[3]) for row in (out / "log.csv").read_text().split()[1:]]

    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    run(one, 1, 10, 2)
    run(two, 2, 5, 2)
    run(parts, 2, 5, 1)
    run(parts, 2, 5, 2)
    expected = torch.load(one / "gradients.0.pt")
    for rank in range(2):
        found = torch.load(two / f"gradients.{rank}.pt")
        assert found.pop("loss") == pytest.approx(expected["loss"], rel=1e-5)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
    assert losses(two) == pytest.approx(losses(one), rel=1e-2), "rounding adds up"
    assert losses(two)[0] != losses(two)[-1]
    for rank in range(2):
        ends = [torch.load(out / f"weights.{rank}.pt") for out in (two, parts)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def weights_after(config: TrainingConfig, out: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    still = random_model(dataclasses.replace(TINY, dropout=0.0), seed=1)
    Trainer(still, config, out, quiet=True).run(pairs(12, 1), pairs(8, 2))
    return still.state_dict()


def test_gradients_of_several_batches_add_up(tmp_path: Path) -> None:
    """One step for three batches, and one for what is left at the end of an epoch."""
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=2, accumulate=4, gradient_clip=0.0)
    weights_after(config, tmp_path)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    assert rows[0] == "step,epoch,learning_rate,loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "0", "0", "1", "1", "2"]


def test_mixed_precision_stays_close(tmp_path: Path) -> None:
    whole, mixed = (
        weights_after(dataclasses.replace(CONFIG, epochs=2, precision=precision), tmp_path)
        for precision in ("fp32", "bf16")
    )
    assert all(weight.dtype == torch.float32 for weight in mixed.values())
    differences = [float((whole[name] - mixed[name]).abs().max()) for name in whole]
    assert 0 < max(differences) < 0.1
    with pytest.raises(TeranInputError, match="fp16 is for GPUs"):
        Trainer(model(), dataclasses.replace(CONFIG, precision="fp16"), tmp_path)


def test_bert_may_stay_as_it_is(tmp_path: Path) -> None:
    begun = random_model(TINY, seed=1).state_dict()
    config = dataclasses.replace(CONFIG, epochs=1, fine_tune_text=False)
    found = weights_after(config, tmp_path)
    for name, weight in found.items():
        of_bert = name.startswith(("textual_encoder.bert", "textual_encoder.embeddings"))
        assert torch.equal(weight, begun[name]) is of_bert, name


def test_the_log_of_a_run_that_goes_on_has_every_batch_once(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=2, batch_size=6)
    train, validation = pairs(12, 1), pairs(8, 2)
    first = Trainer(model(), dataclasses.replace(config, epochs=1), tmp_path, quiet=True)
    first.run(train, validation)
    with (tmp_path / "log.csv").open("a") as file:  # an epoch that was cut off in a line
        file.write("3,2,0.001,9.0\r\n\r\n4,2")
    second = Trainer(model(), config, tmp_path, quiet=True)
    second.resume()
    second.run(train, validation)
    rows = [row.split(",") for row in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [("1", "1"), ("2", "1"), ("3", "2"), ("4", "2")]
    assert rows[2][3] != "9.0"


def test_an_epoch_may_visit_every_caption(tmp_path: Path) -> None:
    data = pairs(6, 1)
    several = PairDataset(data.features, data.boxes, [list(one) * 5 for one in data.captions])
    config = dataclasses.replace(CONFIG, epochs=1, batch_size=10, all_captions=True)
    Trainer(model(), config, tmp_path, quiet=True).run(several, pairs(8, 2))
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 3


def test_a_loss_that_is_no_number_ends_the_run_and_spoils_nothing(tmp_path: Path) -> None:
    broken = model()
    trainer = Trainer(broken, CONFIG, tmp_path, quiet=True)
    with torch.no_grad():
        broken.visual_encoder.projection.weight.fill_(float("nan"))
    with pytest.raises(TeranError, match="gives no numbers any more, epoch 1, batch 1"):
        trainer.run(pairs(16, 1), pairs(8, 2))
    assert not (tmp_path / "best").exists()
    images, sentences = validate(broken, pairs(8, 2))
    assert (images.r1, sentences.r1) == (0, 0), "what is no number ranks last"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimizer", "sgd"), ("precision", "fp8"), ("accumulate", 0), ("epochs", 0), ("gamma", 0)],
)
def test_settings_that_can_not_be_are_named(setting: str, value: object) -> None:
    settings: dict[str, Any] = {setting: value}
    with pytest.raises(TeranInputError, match=f"{setting} is {value!r}"):
        TrainingConfig(**settings)


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(tmp_path: Path) -> None:
    Trainer(model(), dataclasses.replace(CONFIG, epochs=1), tmp_path, quiet=True).run(
        pairs(12, 1), pairs(8, 2)
    )
    for other in ({"batch_size": 4}, {"seed": 6}, {"learning_rate": 1.0}):
        changed = dataclasses.replace(CONFIG, **other)
        with pytest.raises(CheckpointError, match=f"is of a run with {next(iter(other))} "):
            Trainer(model(), changed, tmp_path).resume()
    alone = Trainer(model(), dataclasses.replace(CONFIG, batch_size=1), tmp_path, quiet=True)
    train, validation = pairs(12, 1), pairs(8, 2)
    with pytest.raises(TeranInputError, match="no batch can be made of 12 pairs, 1 at a time"):
        alone.run(train, validation)
