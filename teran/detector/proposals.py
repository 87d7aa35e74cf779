"""From the proposal network's maps to boxes that may hold an object."""

import math

import torch
from torch import Tensor

from teran.detector.boxes import best_apart
from teran.detector.config import DetectorConfig
from teran.detector.network import ANCHORS, STRIDE

_NMS = 0.7
_LARGEST_STEP = math.log(1000 / 16)
"""Of the logarithm of a side: more is a network gone wrong."""
_BASE, _RATIOS, _SCALES = 16, (0.5, 1.0, 2.0), (4, 8, 16, 32)


def anchors() -> Tensor:
    """Caffe's twelve (12, 4): three shapes, whose sides are rounded, of four sizes."""
    centre = (_BASE - 1) / 2
    shapes = []
    for ratio in _RATIOS:
        width = round(math.sqrt(_BASE * _BASE / ratio))
        shapes.append((width, round(width * ratio)))
    sides = torch.tensor([(w * s, h * s) for w, h in shapes for s in _SCALES], dtype=torch.float32)
    return torch.cat([centre - (sides - 1) / 2, centre + (sides - 1) / 2], dim=1)


def propose(
    objectness: Tensor,
    deltas: Tensor,
    bases: Tensor,
    size: tuple[int, int],
    scale: float,
    config: DetectorConfig,
) -> Tensor:
    """The most promising boxes of a photo, apart from each other.

    Args:
        objectness: (12, h, w), probabilities.
        deltas: (48, h, w)
        bases: the anchors (12, 4).
        size: height and width of the network's input.
        scale: of the input to the photo.
        config: how many.

    Returns:
        (n, 4) in the input's pixels, the most promising first.
    """
    height, width = objectness.shape[1:]
    rows = torch.arange(height, device=deltas.device) * STRIDE
    columns = torch.arange(width, device=deltas.device) * STRIDE
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).float()
    placed = (shifts[:, :, None] + bases).view(-1, 4)
    steps = deltas.view(ANCHORS, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
    scores = objectness.permute(1, 2, 0).flatten()
    boxes = _moved(placed, steps)
    limits = torch.tensor([size[1], size[0]] * 2, device=boxes.device) - 1
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    large = (boxes[:, 2:] - boxes[:, :2] + 1 >= STRIDE * scale).all(dim=1)
    boxes, scores = boxes[large], scores[large]
    order = scores.argsort(descending=True, stable=True)[: config.proposals_before_nms]
    boxes = boxes[order]
    return boxes[best_apart(boxes, _NMS, config.proposals)]


def _moved(bases: Tensor, steps: Tensor) -> Tensor:
    """Boxes (N, 4) by what the network says of their anchors."""
    sides = bases[:, 2:] - bases[:, :2] + 1
    centres = bases[:, :2] + 0.5 * sides + steps[:, :2] * sides
    sides = sides * steps[:, 2:].clamp(max=_LARGEST_STEP).exp()
    return torch.cat([centres - 0.5 * sides, centres + 0.5 * sides], dim=1)
