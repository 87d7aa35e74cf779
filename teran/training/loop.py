"""The training loop: one epoch after another, validated, recorded, resumable."""

import dataclasses
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teran.errors import CheckpointError, TeranError, TeranInputError
from teran.evaluation.retrieval import Recall, caption_ranks, image_ranks
from teran.evaluation.scoring import Floats, score_all
from teran.model import Pooling, TeranModel
from teran.model.alignment import present
from teran.model.precision import DTYPES
from teran.training.config import TrainingConfig
from teran.training.data import CaptionBatch, ImageBatch, PairDataset, caption_batch
from teran.training.distributed import World
from teran.training.log import Log
from teran.training.loss import triplet_loss

Batch = tuple[ImageBatch, CaptionBatch, int]
"""A share of a batch of pairs, and how many pairs the batch has."""


@torch.inference_mode()
def score_dataset(model: TeranModel, data: PairDataset, batch_size: int = 100) -> Floats:
    """Score every image of `data` against every caption, (N, M), in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    captions = [ids for group in data.captions for ids in group]
    regions: list[Floats] = []
    for start in range(0, len(data), batch_size):
        batch = data.images(range(start, min(start + batch_size, len(data)))).to(device)
        found = model.encode_images(batch.features, batch.boxes, batch.mask).cpu()
        kept = batch.mask.cpu()
        regions += [one[rows].numpy() for one, rows in zip(found, kept, strict=True)]
    words: list[Floats] = []
    for start in range(0, len(captions), batch_size):
        said = caption_batch(captions[start : start + batch_size]).to(device)
        found = model.encode_captions(said.input_ids, said.attention_mask).cpu()
        words += [one[rows].numpy() for one, rows in zip(found, present(found), strict=True)]
    return score_all(regions, words, Pooling(model.config.pooling))


def validate(model: TeranModel, data: PairDataset) -> tuple[Recall, Recall]:
    """Image and sentence retrieval recall of `model` on `data`."""
    owner = np.repeat(np.arange(len(data)), [len(group) for group in data.captions])
    scores = score_dataset(model, data)
    return Recall.of(image_ranks(scores, owner)), Recall.of(caption_ranks(scores, owner))


@dataclass
class TrainingState:
    """What is needed, beside the weights, to go on where a run stopped."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a model on pairs, keeping `last.pt`, the bundle `best/`, `record.json` and `log.csv`.

    The first of several processes keeps them.
    """

    def __init__(
        self,
        model: TeranModel,
        config: TrainingConfig,
        directory: Path,
        *,
        quiet: bool = False,
        world: World | None = None,
    ) -> None:
        """Prepare to train where the model is.

        Args:
            model: trained in place.
            config: how.
            directory: where the run is kept.
            quiet: show nothing.
            world: the processes that train it together.

        Raises:
            TeranInputError: the precision needs another device.
        """
        self.model, self.config, self.directory = model, config, directory
        self.world = world or World()
        self.quiet = quiet or self.world.rank > 0
        self.device = next(model.parameters()).device
        if config.precision == "fp16" and self.device.type != "cuda":
            raise TeranInputError("fp16 is for GPUs: its range needs a scaled loss; take bf16")
        if not config.fine_tune_text:
            for part in (model.textual_encoder.embeddings, model.textual_encoder.bert):
                part.requires_grad_(False)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        self.optimizer = kinds[config.optimizer](
            [one for one in model.parameters() if one.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.state = TrainingState()
        self.random = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed + self.world.rank)
        self.world.share_weights(model)

    def learning_rate(self) -> float:
        """The learning rate of the step to come: linear warm-up, then steps."""
        rate = self.config.learning_rate * self.config.gamma ** (
            self.state.epoch // self.config.step_size
        )
        return rate * min(1.0, (self.state.step + 1) / max(self.config.warmup_steps, 1))

    def run(self, train: PairDataset, validation: PairDataset) -> TrainingState:
        """Train up to the configured number of epochs and return the final state."""
        self.directory.mkdir(parents=True, exist_ok=True)
        log = Log(self.directory / "log.csv" if self.world.rank == 0 else None, self.state.epoch)
        with (
            log,
            Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}"),
                TimeRemainingColumn(),
                disable=self.quiet,
            ) as progress,
        ):
            while self.state.epoch < self.config.epochs:
                started = perf_counter()
                loss = self._epoch(train, progress, log)
                (images, sentences), *_ = self.world.collect(
                    validate(self.model, validation) if self.world.rank == 0 else None
                )
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
                both = (images, sentences)
                self._keep(sum(one.r1 + one.r5 + one.r10 for one in both))
                if not self.quiet:
                    progress.console.print(
                        f"epoch {self.state.epoch}: loss {loss:.3f}, image R@1 {images.r1:.1f} "
                        f"R@10 {images.r10:.1f}, sentence R@1 {sentences.r1:.1f}"
                    )
        return self.state

    def _epoch(self, train: PairDataset, progress: Progress, log: Log) -> float:
        """Visit every image once, with one of its captions drawn at random, or every caption."""
        self.model.train()
        size = self.config.batch_size * self.world.size
        pairs = self._pairs(train)
        batches = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        batches = [batch for batch in batches if len(batch) >= max(2, self.world.size)]
        if not batches:
            raise TeranInputError(
                f"no batch can be made of {len(pairs)} pairs, {size} at a time: it takes two"
            )
        task = progress.add_task("", total=len(batches), epoch=self.state.epoch + 1, loss=0.0)
        total = 0.0

        def load(batch: list[tuple[int, int]]) -> Batch:
            own = self.world.part(batch)
            said = caption_batch([train.captions[image][caption] for image, caption in own])
            return train.images([image for image, _ in own]), said, len(batch)

        with ThreadPoolExecutor(1) as reader:  # reads a batch while another is learnt from
            loading = [reader.submit(load, batch) for batch in batches[:1]]
            for done, batch in enumerate(batches, start=1):
                ready = loading.pop().result()
                loading += [reader.submit(load, one) for one in batches[done : done + 1]]
                is_last = done % self.config.accumulate == 0 or done == len(batches)
                rate = self.learning_rate()
                loss = self.step(*ready, update=is_last) / len(batch)
                if not math.isfinite(loss):
                    raise TeranError(
                        f"the model gives no numbers any more, epoch {self.state.epoch + 1}, batch "
                        f"{done}: lower the learning rate or take another precision; `best` is kept"
                    )
                total += loss
                progress.update(task, completed=done, loss=total / done)
                log.add(self.state.step, self.state.epoch + 1, rate, loss)
        progress.remove_task(task)
        return total / max(len(batches), 1)

    def _pairs(self, train: PairDataset) -> list[tuple[int, int]]:
        """Images and which of their captions, in the order of an epoch."""
        if self.config.all_captions:
            every = [
                (i, c) for i, several in enumerate(train.captions) for c in range(len(several))
            ]
            return [every[i] for i in torch.randperm(len(every), generator=self.random).tolist()]
        order = torch.randperm(len(train), generator=self.random).tolist()
        draws = torch.rand(len(train), generator=self.random).tolist()
        return [(i, int(draws[i] * len(train.captions[i]))) for i in order]

    def step(
        self, images: ImageBatch, captions: CaptionBatch, pairs: int, *, update: bool = True
    ) -> float:
        """Learn from a batch of pairs.

        Args:
            images: this process's share of the batch.
            captions: likewise.
            pairs: how many all processes have.
            update: change the weights now, by the gradients since they were changed last.

        Returns:
            The batch's loss, a sum over the pairs; NaN where an embedding is no number.
        """
        images, captions = images.to(self.device), captions.to(self.device)
        mixed = self.config.precision != "fp32"
        with torch.autocast(self.device.type, DTYPES[self.config.precision], enabled=mixed):
            regions = self.model.encode_images(images.features, images.boxes, images.mask)
            words = self.model.encode_captions(captions.input_ids, captions.attention_mask)
        scores = self.model.align(
            self.world.gather(regions.float(), pairs), self.world.gather(words.float(), pairs)
        )
        hardest = self.config.hardest_negative
        warm = self.state.epoch < self.config.all_negatives_epochs
        loss = triplet_loss(scores, self.config.margin, hardest and not warm)
        if not all(torch.isfinite(one).all() for one in (regions, words)):
            return math.nan  # such rows would count as absent, and the loss look like any other
        self.scaler.scale(loss).backward()
        if update:
            self._update()
        return float(loss.detach())

    def _update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.world.average_gradients(self.model)
        if self.config.gradient_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.state.step += 1

    def _keep(self, quality: float) -> None:
        """Write the last state, and the bundle where it is the best so far."""
        random = self.world.collect(_random_states())
        if self.world.rank:
            return
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
                "scaler": self.scaler.state_dict(),
                "torch_random": random,
                "config": dataclasses.asdict(self.config),
                "processes": self.world.size,
            },
            partial,
        )
        partial.replace(self.directory / "last.pt")

    def _check_same(self, saved: dict[str, Any], path: Path) -> None:
        """Make sure that a run goes on as it was begun; it may get longer.

        Raises:
            CheckpointError: a setting is another.
        """
        now = dataclasses.asdict(self.config) | {"processes": self.world.size}
        before = saved["config"] | {"processes": saved["processes"]}
        for name in now.keys() - {"epochs"}:
            if now[name] != before.get(name):
                raise CheckpointError(
                    f"{path} is of a run with {name} {before.get(name)}, not {now[name]}"
                )

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
            self._check_same(saved, path)
            self.model.load_state_dict(saved["model"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state = TrainingState(**saved["state"])
            self.random.set_state(saved["random"])
            self.scaler.load_state_dict(saved["scaler"])
            own = saved["torch_random"][self.world.rank]
            torch.set_rng_state(own[0])
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(own[1])
        except (
            RuntimeError,
            LookupError,
            ValueError,
            TypeError,
            EOFError,
            UnpicklingError,
        ) as error:
            raise CheckpointError(f"{path} does not fit this run: {error}") from error


def _random_states() -> list[torch.Tensor]:
    """Of this process's generators: the CPU's and, if it uses one, its GPU's."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states
