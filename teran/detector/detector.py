"""Finds the regions of photos that TERAN takes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teran.detector import checkpoint
from teran.detector.config import DetectorConfig
from teran.detector.network import ProposalNetwork, RegionNetwork
from teran.detector.photo import prepared, scale_of
from teran.detector.pooling import roi_pool
from teran.detector.proposals import anchors, propose
from teran.detector.regions import Regions, choose
from teran.errors import CheckpointError


class RegionDetector(nn.Module):
    """Both networks, and what is between them."""

    anchors: Tensor
    """(12, 4)"""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.proposal_network = ProposalNetwork(config)
        self.region_network = RegionNetwork(config)
        self.register_buffer("anchors", torch.from_numpy(anchors()))
        self.eval()

    def detect(self, photos: Sequence[npt.NDArray[np.uint8]]) -> list[Regions]:
        """Find the regions of photos (H, W, 3), red first, each in any size."""
        return [self._detect(photo) for photo in photos]

    @torch.inference_mode()
    def _detect(self, photo: npt.NDArray[np.uint8]) -> Regions:
        device = self.anchors.device
        size = (photo.shape[0], photo.shape[1])
        scale = scale_of(size, self.config)
        pixels = prepared(photo, scale)
        res4, *maps = self.proposal_network(torch.from_numpy(pixels).to(device)[None])
        objectness, deltas = (one[0].cpu().numpy() for one in maps)
        proposals = propose(objectness, deltas, self.anchors.cpu().numpy(), size, self.config)
        cells = roi_pool(res4, torch.from_numpy(proposals).to(device)[None])
        features, classes = (one.cpu().numpy() for one in self.region_network(cells))
        return choose(features, classes, proposals / np.float32(scale), self.config)

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
