"""A photo as the network takes it."""

import torch
from torch import Tensor

from teran.detector.config import DetectorConfig

MEAN = (102.9801, 115.9465, 122.7717)
"""Of blue, green and red."""


def scale_of(photo: Tensor, config: DetectorConfig) -> float:
    """What the sides of a photo (H, W, 3) are multiplied by."""
    short, long = sorted(photo.shape[:2])
    scale = config.min_side / short
    if round(scale * long) > config.max_side:
        scale = config.max_side / long
    return scale


def prepared(photo: Tensor, scale: float) -> Tensor:
    """Blue, green and red less their means, resized.

    Sampled between pixels at `(i + 0.5) / scale - 0.5`: by the scale, as Caffe's code had OpenCV do
    it, and not by the ratio of the sizes, which are rounded.

    Args:
        photo: (H, W, 3) uint8, red first.
        scale: of its sides.

    Returns:
        (3, h, w) fp32
    """
    pixels = photo.flip(-1).float() - torch.tensor(MEAN, device=photo.device)
    pixels = _resized(_resized(pixels, 1, scale), 0, scale)
    return pixels.permute(2, 0, 1).contiguous()


def _resized(pixels: Tensor, axis: int, scale: float) -> Tensor:
    """Along one axis."""
    size = pixels.shape[axis]
    places = (torch.arange(round(size * scale), dtype=torch.float64) + 0.5) / scale - 0.5
    places = places.clamp(0, size - 1)
    low = places.floor().long().clamp(max=max(size - 2, 0))
    weight = (places - low).float().to(pixels.device)
    weight = weight.view([-1 if i == axis else 1 for i in range(3)])
    low = low.to(pixels.device)
    one, other = (
        pixels.index_select(axis, low),
        pixels.index_select(axis, (low + 1).clamp(max=size - 1)),
    )
    return one * (1 - weight) + other * weight
