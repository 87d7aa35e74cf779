"""Trains a tiny model, alone or as one of several of `torchrun`: OUT BATCH EPOCHS."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from teran.model.random import random_model
from teran.training import Trainer, TrainingConfig
from teran.training.data import caption_batch
from teran.training.distributed import World
from tests.conftest import TINY
from tests.unit.training.data import pairs


def main() -> None:
    out, batch, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    world = World.join()
    # Each begins with other weights: those of the first are to count.
    model = random_model(replace(TINY, dropout=0.0), seed=1 + world.rank)
    config = TrainingConfig(
        epochs=epochs, batch_size=batch, learning_rate=1e-3, all_negatives_epochs=1, seed=5
    )
    trainer = Trainer(model, config, out, quiet=True, world=world)
    data = pairs(22, 1, even=False)
    own = world.part(range(11))
    said = caption_batch([data.captions[i][0] for i in own])
    loss = trainer.step(data.images(own), said, 11, update=False)
    world.average_gradients(model)
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    torch.save({"loss": loss, **gradients}, out / f"gradients.{world.rank}.pt")
    trainer.optimizer.zero_grad()
    if (out / "last.pt").is_file():
        trainer.resume()
    trainer.run(data, pairs(8, 2))
    torch.save(model.state_dict(), out / f"weights.{world.rank}.pt")
    world.leave()


if __name__ == "__main__":
    main()
