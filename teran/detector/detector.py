"""Finds the regions of photos that TERAN takes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teran.detector import checkpoint
from teran.detector.boxes import best_scores_apart
from teran.detector.config import DetectorConfig
from teran.detector.network import ProposalNetwork, RegionNetwork
from teran.detector.photo import prepared, scale_of
from teran.detector.pooling import roi_pool
from teran.detector.proposals import anchors, propose
from teran.errors import CheckpointError

_NMS = 0.3
_CONFIDENCE = 0.2
"""Score from which a region is chosen, as far as their number allows."""


@dataclass(frozen=True, eq=False)
class Regions:
    """A photo's regions."""

    features: npt.NDArray[np.float32]
    """(R, F)"""
    boxes: npt.NDArray[np.float32]
    """(R, 4), x1 y1 x2 y2 in the photo's pixels."""
    confidence: npt.NDArray[np.float32]
    """(R,), the score of the class that each was chosen for."""
    labels: npt.NDArray[np.int64]
    """(R,), the likeliest class, counted without the background."""


class RegionDetector(nn.Module):
    """Both networks, and what is between them."""

    anchors: Tensor
    """(12, 4)"""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.proposal_network = ProposalNetwork(config)
        self.region_network = RegionNetwork(config)
        self.register_buffer("anchors", anchors())
        self.eval()

    def detect(self, photos: Sequence[npt.NDArray[np.uint8]]) -> list[Regions]:
        """Find the regions of photos (H, W, 3), red first, each in any size."""
        return [self._detect(photo) for photo in photos]

    @torch.inference_mode()
    def _detect(self, photo: npt.NDArray[np.uint8]) -> Regions:
        device = next(self.parameters()).device
        given = torch.from_numpy(photo.copy()).to(device)
        scale = scale_of(given, self.config)
        pixels = prepared(given, scale)
        res4, objectness, deltas = self.proposal_network(pixels[None])
        size = (pixels.shape[1], pixels.shape[2])
        proposals = propose(objectness[0], deltas[0], self.anchors, size, scale, self.config)
        features, classes = self.region_network(roi_pool(res4[0], proposals))
        boxes = proposals / scale
        confidence = best_scores_apart(boxes, classes[:, 1:], _NMS)
        chosen = choose(confidence, self.config)
        found = (features, boxes, confidence, classes[:, 1:].argmax(dim=1))
        return Regions(*(values[chosen].cpu().numpy() for values in found))

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, config: DetectorConfig | None = None
    ) -> "RegionDetector":
        """Read public weights: MILVLG's, or `unc-nlp/frcnn-vg-finetuned`'s.

        Args:
            path: a `.pth`, `.bin` or `.safetensors`.
            config: what else than the weights decides; without it the original's, of the
                architecture that the tensors' shapes show.

        Raises:
            CheckpointError: the file can't be read safely, or does not fit.
        """
        found, weights = checkpoint.read(path, config)
        detector = cls(found)
        weights.setdefault("anchors", detector.anchors)
        try:
            detector.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from error
        return detector

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "RegionDetector":
        """Read what `save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        folder = Path(directory)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            detector = cls(DetectorConfig.from_dict(config))
            detector.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder} is not a detector: {error}") from error
        return detector

    def save_pretrained(self, directory: str | Path, labels: Sequence[str] = ()) -> None:
        """Write `config.json`, `model.safetensors` and, where classes have names, `labels.txt`.

        Raises:
            CheckpointError: there are more or fewer names than classes.
        """
        if labels and len(labels) != self.config.classes:
            raise CheckpointError(f"{len(labels)} names for {self.config.classes} classes")
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        if labels:
            (folder / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        text = json.dumps(self.config.to_dict(), indent=1) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        save_file(
            {name: value.contiguous() for name, value in self.state_dict().items()},
            folder / "model.safetensors",
        )


def choose(confidence: Tensor, config: DetectorConfig) -> Tensor:
    """Which proposals become regions.

    Those of enough confidence, in the order of proposals; where they are too few, the fewest
    allowed, and where they are too many, the most: the surest first.
    """
    sure = (confidence >= _CONFIDENCE).nonzero().flatten()
    if config.min_regions <= len(sure) <= config.max_regions:
        return sure
    count = config.min_regions if len(sure) < config.min_regions else config.max_regions
    return confidence.argsort(descending=True, stable=True)[:count]
