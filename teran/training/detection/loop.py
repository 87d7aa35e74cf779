"""The training loop of a detector: one stage after the other in each step, all weights at once."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich import print as rprint
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from teran.detector import RegionDetector
from teran.detector.config import ANCHORS
from teran.detector.network import Bottleneck, FrozenNorm
from teran.detector.photo import prepared, scale_of
from teran.detector.pooling import roi_pool
from teran.detector.proposals import propose
from teran.training.detection.targets import (
    LabelledPhoto,
    anchor_targets,
    check_photo,
    place_anchors,
    proposal_targets,
)

_SMOOTH = 1 / 9
"""Difference from which a step's loss grows linearly."""


@dataclass(frozen=True)
class DetectorTrainingConfig:
    """How to train; what to train is the detector's config."""

    epochs: int = 12
    batch_size: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 200
    anchors: int = 128
    """Of a photo."""
    proposals: int = 32
    """Of a photo."""
    gradient_clip: float = 10.0
    seed: int = 0


class DetectorTrainer:
    """Trains a detector on photos of one size. Norms learn their statistics meanwhile.

    After each epoch the detector is kept, as it is served, with the record `training.json`.
    """

    def __init__(
        self,
        detector: RegionDetector,
        config: DetectorTrainingConfig,
        directory: Path,
        labels: Sequence[str] = (),
        *,
        quiet: bool = False,
    ) -> None:
        torch.manual_seed(config.seed)
        self.detector, self.config = detector, config
        self.directory, self.labels, self.quiet = directory, labels, quiet
        # Quicker on a CPU; torch's stubs know of no call without a device or type.
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._random = np.random.default_rng(config.seed)
        _initialise(detector)
        thaw_norms(detector)
        features = detector.config.feature_dim
        self._attributes = nn.Linear(features, detector.config.attributes)  # which serving lacks
        weights = [*detector.parameters(), *self._attributes.parameters()]
        for weight in weights:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(
            weights, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.history: list[dict[str, Any]] = []
        self._step = 0

    def run(self, photos: Sequence[LabelledPhoto]) -> None:
        """Train on all photos, epoch after epoch.

        Raises:
            TeranInputError: they differ in size, or one has no boxes or other classes and
                attributes than the detector.
        """
        for i, photo in enumerate(photos):
            check_photo(photo, f"photo {i}", photos[0].pixels.shape, self.detector.config)
        steps = self.config.epochs * math.ceil(len(photos) / self.config.batch_size)
        for epoch in range(1, self.config.epochs + 1):
            started = perf_counter()
            order = self._random.permutation(len(photos))
            batches = list(_parts(order.tolist(), self.config.batch_size))
            losses = [
                self.step([photos[i] for i in batch], self._step / steps)
                for batch in track(batches, f"epoch {epoch}", disable=self.quiet, transient=True)
            ]
            mean = {
                name: round(float(np.mean([one[name] for one in losses])), 4) for name in losses[0]
            }
            seconds = round(perf_counter() - started, 1)
            self.history.append({"epoch": epoch, **mean, "seconds": seconds})
            self._keep()
            if not self.quiet:
                told = ", ".join(f"{name} {value:.3f}" for name, value in mean.items())
                rprint(f"epoch {epoch}: {told}")

    def step(self, photos: Sequence[LabelledPhoto], progress: float = 0.0) -> dict[str, float]:
        """One optimizer step; returns its losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(progress)
        self.detector.train()
        losses = self._losses(photos)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.config.gradient_clip)
        self.optimizer.step()
        self._step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _keep(self) -> None:
        frozen(self.detector).save_pretrained(self.directory, self.labels)
        record = {
            "detector": self.detector.config.to_dict(),
            "training": dataclasses.asdict(self.config),
            "history": self.history,
        }
        (self.directory / "training.json").write_text(json.dumps(record, indent=1) + "\n")

    def _learning_rate(self, progress: float) -> float:
        warm = min(1.0, (self._step + 1) / max(self.config.warmup_steps, 1))
        return self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))

    def _losses(self, photos: Sequence[LabelledPhoto]) -> dict[str, Tensor]:
        config, size = self.detector.config, photos[0].pixels.shape[:2]
        scale = scale_of((size[0], size[1]), config)
        pixels = np.stack([prepared(photo.pixels, scale) for photo in photos])
        network = self.detector.proposal_network
        res4 = network.backbone(torch.from_numpy(pixels))
        logits, deltas = network.rpn_head(res4)
        background, foreground = logits.split(ANCHORS, dim=1)
        raw = foreground - background
        bases = self.detector.anchors.numpy()
        anchors = place_anchors(bases, raw.shape[2], raw.shape[3])
        objectness, moves, sampled = [], [], []
        for i, photo in enumerate(photos):
            boxes = photo.boxes * np.float32(scale)
            shape = (pixels.shape[2], pixels.shape[3])
            wanted = anchor_targets(anchors, boxes, shape, self.config.anchors, self._random)
            chosen = torch.from_numpy(wanted.chosen)
            scores = raw[i].permute(1, 2, 0).flatten()[chosen]
            is_object = torch.from_numpy(wanted.is_object)
            objectness.append(F.binary_cross_entropy_with_logits(scores, is_object.float()))
            steps = deltas[i].unflatten(0, (ANCHORS, 4)).permute(2, 3, 0, 1).reshape(-1, 4)
            difference = (steps[chosen] - torch.from_numpy(wanted.deltas))[is_object]
            loss = F.smooth_l1_loss(
                difference, torch.zeros_like(difference), beta=_SMOOTH, reduction="sum"
            )
            moves.append(loss / len(chosen))
            found = propose(
                torch.sigmoid(raw[i]).detach().numpy(),
                deltas[i].detach().numpy(),
                bases,
                (size[0], size[1]),
                config,
            )
            sampled.append(
                proposal_targets(found, boxes, photo.classes, self.config.proposals, self._random)
            )
        cells = roi_pool(res4, torch.from_numpy(np.stack([one.boxes for one in sampled])))
        features = self.detector.region_network.res5(cells).mean(dim=(2, 3))
        classes = torch.from_numpy(np.concatenate([one.classes for one in sampled]))
        scores = self.detector.region_network.cls_score(features)
        attributes = np.concatenate(
            [photo.attributes[one.objects] for photo, one in zip(photos, sampled, strict=True)]
        )
        has = torch.from_numpy(np.concatenate([one.objects for one in sampled]) >= 0)
        told = F.binary_cross_entropy_with_logits(
            self._attributes(features)[has], torch.from_numpy(attributes).float()[has]
        )
        return {
            "objectness": torch.stack(objectness).mean(),
            "boxes": torch.stack(moves).mean(),
            "classes": F.cross_entropy(scores, classes),
            "attributes": told,
        }


def thaw_norms(network: nn.Module) -> None:
    """Have every norm learn, in place."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, FrozenNorm):
                norm = nn.BatchNorm2d(len(child.weight))
                state = {key: value.clone() for key, value in child.state_dict().items()}
                norm.load_state_dict(state, strict=False)
                setattr(module, name, norm)


def frozen(detector: RegionDetector) -> RegionDetector:
    """A copy as it is served, with the statistics of its training."""
    result = RegionDetector(detector.config)
    state = detector.state_dict()
    result.load_state_dict({name: state[name] for name in result.state_dict()})
    return result


def _initialise(detector: RegionDetector) -> None:
    """Weights to begin with: a residual block adds nothing at first."""
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, FrozenNorm):
            module.weight.fill_(1)
            module.running_var.fill_(1)
    for module in detector.modules():
        if isinstance(module, Bottleneck):
            module.conv3.norm.weight.zero_()
    head = detector.proposal_network.rpn_head
    for layer in (head.objectness_logits, head.anchor_deltas, detector.region_network.cls_score):
        nn.init.normal_(layer.weight, std=0.01)


def _parts(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
