"""The training loop: one epoch after another, validated, recorded, resumable."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from teran.errors import CheckpointError
from teran.evaluation.retrieval import Recall, caption_ranks, image_ranks
from teran.model import TeranModel
from teran.training.config import TrainingConfig
from teran.training.data import PairDataset, caption_batch
from teran.training.loss import triplet_loss


@torch.inference_mode()
def score_dataset(model: TeranModel, data: PairDataset, batch_size: int = 100) -> Tensor:
    """Score every image of `data` against every caption, (N, M), in evaluation mode."""
    model.eval()
    captions = [ids for group in data.captions for ids in group]
    regions = []
    for start in range(0, len(data), batch_size):
        batch = data.images(range(start, min(start + batch_size, len(data))))
        regions.append(model.encode_images(batch.features, batch.boxes, batch.mask))
    columns = []
    for start in range(0, len(captions), batch_size):
        words = caption_batch(captions[start : start + batch_size])
        embeddings = model.encode_captions(words.input_ids, words.attention_mask)
        columns.append(torch.cat([model.align(block, embeddings) for block in regions]))
    return torch.cat(columns, dim=1)


def validate(model: TeranModel, data: PairDataset) -> tuple[Recall, Recall]:
    """Image and sentence retrieval recall of `model` on `data`."""
    owner = np.repeat(np.arange(len(data)), [len(group) for group in data.captions])
    scores = score_dataset(model, data).numpy()
    return Recall.of(image_ranks(scores, owner)), Recall.of(caption_ranks(scores, owner))


@dataclass
class TrainingState:
    """What is needed, beside the weights, to go on where a run stopped."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a model on pairs, keeping `last.pt`, the bundle `best/` and `record.json`."""

    def __init__(
        self, model: TeranModel, config: TrainingConfig, directory: Path, *, quiet: bool = False
    ) -> None:
        self.model, self.config, self.directory, self.quiet = model, config, directory, quiet
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[config.optimizer](
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.state = TrainingState()
        self.random = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)

    def learning_rate(self) -> float:
        """The learning rate of the step to come: linear warm-up, then steps."""
        rate = self.config.learning_rate * self.config.gamma ** (
            self.state.epoch // self.config.step_size
        )
        return rate * min(1.0, (self.state.step + 1) / max(self.config.warmup_steps, 1))

    def run(self, train: PairDataset, validation: PairDataset) -> TrainingState:
        """Train up to the configured number of epochs and return the final state."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            disable=self.quiet,
        ) as progress:
            while self.state.epoch < self.config.epochs:
                started = perf_counter()
                loss = self._epoch(train, progress)
                images, sentences = validate(self.model, validation)
                self.state.epoch += 1
                self.state.history.append(
                    {
                        "epoch": self.state.epoch,
                        "loss": round(loss, 4),
                        "image_recall": [images.r1, images.r5, images.r10],
                        "sentence_recall": [sentences.r1, sentences.r5, sentences.r10],
                        "seconds": round(perf_counter() - started, 1),
                    }
                )
                self._keep(images.r1 + images.r10 + sentences.r1 + sentences.r10)
                if not self.quiet:
                    progress.console.print(
                        f"epoch {self.state.epoch}: loss {loss:.3f}, image R@1 {images.r1:.1f} "
                        f"R@10 {images.r10:.1f}, sentence R@1 {sentences.r1:.1f}"
                    )
        return self.state

    def _epoch(self, train: PairDataset, progress: Progress) -> float:
        """Visit every image once, each with one of its captions drawn at random."""
        self.model.train()
        order = torch.randperm(len(train), generator=self.random).tolist()
        draws = torch.rand(len(train), generator=self.random).tolist()
        batches = [
            order[i : i + self.config.batch_size]
            for i in range(0, len(order), self.config.batch_size)
        ]
        batches = [batch for batch in batches if len(batch) > 1]
        task = progress.add_task("", total=len(batches), epoch=self.state.epoch + 1, loss=0.0)
        total = 0.0
        for done, batch in enumerate(batches, start=1):
            captions = [train.captions[i][int(draws[i] * len(train.captions[i]))] for i in batch]
            total += self.step(train, batch, captions) / len(batch)
            progress.update(task, completed=done, loss=total / done)
        progress.remove_task(task)
        return total / max(len(batches), 1)

    def step(self, data: PairDataset, images: list[int], captions: list[Any]) -> float:
        """One optimizer step on a batch of pairs; returns the batch's loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        image, text = data.images(images), caption_batch(captions)
        scores = self.model.align(
            self.model.encode_images(image.features, image.boxes, image.mask),
            self.model.encode_captions(text.input_ids, text.attention_mask),
        )
        hardest = self.config.hardest_negative
        warm = self.state.epoch < self.config.all_negatives_epochs
        loss = triplet_loss(scores, self.config.margin, hardest and not warm)
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self.state.step += 1
        return float(loss.detach())

    def _keep(self, quality: float) -> None:
        """Write the last state, and the bundle where it is the best so far."""
        if quality > self.state.best:
            self.state.best = quality
            self.model.save_pretrained(self.directory / "best")
        record = {
            "model": self.model.config.to_dict(),
            "training": dataclasses.asdict(self.config),
            "history": self.state.history,
        }
        (self.directory / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        partial = self.directory / "last.pt.partial"
        torch.save(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "state": dataclasses.asdict(self.state),
                "random": self.random.get_state(),
                "torch_random": torch.get_rng_state(),
                "config": dataclasses.asdict(self.config),
            },
            partial,
        )
        partial.replace(self.directory / "last.pt")

    def resume(self) -> None:
        """Go on from `last.pt` exactly as if the run had not stopped.

        Raises:
            CheckpointError: there is none, or it does not fit this model.
        """
        path = self.directory / "last.pt"
        if not path.is_file():
            raise CheckpointError(f"nothing to resume: no {path}")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = TrainingState(**saved["state"])
            self.random.set_state(saved["random"])
            torch.set_rng_state(saved["torch_random"])
        except (
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
            EOFError,
            UnpicklingError,
        ) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error
