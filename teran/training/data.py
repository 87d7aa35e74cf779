"""Images with their captions in memory, and the padded batches a training step takes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from teran.errors import TeranInputError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageBatch:
    """Padded regions: features (B, R, F), boxes (B, R, 4), mask (B, R)."""

    features: Tensor
    boxes: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "ImageBatch":
        """The same on a device."""
        return ImageBatch(*(one.to(device) for one in (self.features, self.boxes, self.mask)))


@dataclass(frozen=True)
class CaptionBatch:
    """Padded word pieces: ids (B, L), attention mask (B, L)."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "CaptionBatch":
        """The same on a device."""
        return CaptionBatch(self.input_ids.to(device), self.attention_mask.to(device))


@dataclass(frozen=True)
class PairDataset:
    """Images and the captions that describe them.

    Attributes:
        features: per image (R_i, F).
        boxes: per image (R_i, 4), as fractions of width and height.
        captions: per image one or more captions as word-piece ids, [CLS] and [SEP] included.
    """

    features: Sequence[Floats]
    boxes: Sequence[Floats]
    captions: Sequence[Sequence[Sequence[int]]]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.boxes) == len(self.captions):
            raise TeranInputError(
                f"{len(self.features)} features, {len(self.boxes)} boxes and "
                f"{len(self.captions)} lists of captions do not pair up"
            )
        for i, captions in enumerate(self.captions):
            if not captions:
                raise TeranInputError(f"image {i} has no caption")

    def __len__(self) -> int:
        return len(self.features)

    def images(self, indices: Sequence[int]) -> ImageBatch:
        """Pad the chosen images to the longest among them."""
        counts = [len(self.features[i]) for i in indices]
        shape = (len(indices), max(counts))
        features = np.zeros((*shape, self.features[0].shape[1]), np.float32)
        boxes = np.zeros((*shape, 4), np.float32)
        for row, i in enumerate(indices):
            features[row, : counts[row]] = self.features[i]
            boxes[row, : counts[row]] = self.boxes[i]
        mask = torch.arange(shape[1]) < torch.tensor(counts)[:, None]
        return ImageBatch(torch.from_numpy(features), torch.from_numpy(boxes), mask)


def caption_batch(captions: Sequence[Sequence[int]]) -> CaptionBatch:
    """Pad word-piece ids with zeros to the longest caption."""
    lengths = torch.tensor([len(ids) for ids in captions])
    input_ids = torch.zeros(len(captions), int(lengths.max()), dtype=torch.int64)
    for row, ids in enumerate(captions):
        input_ids[row, : len(ids)] = torch.tensor(ids)
    attention_mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    return CaptionBatch(input_ids, attention_mask.long())
