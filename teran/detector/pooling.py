"""Regions of a feature map as cells of one size, each the largest value in its part (ROIPool)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from teran.detector.config import POOLED, STRIDE


def roi_pool(features: Tensor, boxes: Tensor, levels: int | None = None) -> Tensor:
    """Pool regions, as Caffe does: corners are rounded to cells, the last one is inside.

    The largest value of a window is that of two overlapping ones whose sides are powers of two,
    each way. So a few pooled maps and four look-ups a cell are enough, whatever the sizes.

    Args:
        features: (B, C, h, w)
        boxes: (B, R, 4), in the pixels of the network's input.
        levels: how many powers of two there may be, where it must not depend on the boxes; see
            `levels_of`.

    Returns:
        (B x R, C, 14, 14)
    """
    batch, channels, height, width = features.shape
    corners = torch.floor(boxes / STRIDE + 0.5).long()
    top, rows = _windows(corners[..., 1], corners[..., 3], height)
    left, columns = _windows(corners[..., 0], corners[..., 2], width)
    if levels is None:
        levels = int(torch.maximum(rows.max(), columns.max()).clamp(min=1)).bit_length()
    maps = [_pooled(features, 1 << i, 1 << j) for i in range(levels) for j in range(levels)]
    table = torch.stack(maps, dim=1).permute(0, 1, 3, 4, 2).reshape(-1, channels)
    photo = torch.arange(batch, device=boxes.device)[:, None, None]
    row_power, row_level = _largest_power(rows, levels)
    column_power, column_level = _largest_power(columns, levels)
    level = (photo * levels + row_level)[..., :, None] * levels + column_level[..., None, :]
    best: Tensor | None = None
    for first_row in (top, top + rows - row_power):
        for first_column in (left, left + columns - column_power):
            where = (level * height + first_row[..., :, None]) * width + first_column[..., None, :]
            found = table[where.clamp(0, table.shape[0] - 1).flatten()]
            best = found if best is None else torch.maximum(best, found)
    assert best is not None
    some = (rows > 0)[..., :, None] & (columns > 0)[..., None, :]
    cells = torch.where(some.reshape(-1, 1), best, 0.0).view(-1, POOLED, POOLED, channels)
    return cells.permute(0, 3, 1, 2).contiguous()


def levels_of(max_side: int) -> int:
    """Powers of two that a window's side may hold, of photos of so many pixels at most."""
    cells = max_side // STRIDE + 2
    return (cells // POOLED + 2).bit_length()


def _windows(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where each of a region's 14 parts begins, and how many cells it has: (B, R, 14) each."""
    length = (last - first + 1).clamp(min=1)
    part = torch.arange(POOLED, device=first.device)
    # In fp32, as Caffe divides: that decides where a part of 14 ends exactly between two cells.
    step = length.to(torch.float32)[..., None] / POOLED
    start = torch.floor(part * step).long() + first[..., None]
    end = torch.ceil((part + 1) * step).long() + first[..., None]
    start, end = start.clamp(0, size), end.clamp(0, size)
    return start, end - start


def _largest_power(lengths: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """The largest power of two in a length, and its exponent.

    By comparing: a logarithm is rounded, and TensorRT shifts no bits.
    """
    power, level = torch.ones_like(lengths), torch.zeros_like(lengths)
    for exponent in range(1, levels):
        reaches = (lengths >= 1 << exponent).long()
        power, level = power + reaches * (1 << exponent >> 1), level + reaches
    return power, level


def _pooled(features: Tensor, rows: int, columns: int) -> Tensor:
    """The largest value of the window that begins at each cell, as far as it lies in the map."""
    padded = F.pad(features, (0, columns - 1, 0, rows - 1), value=-torch.inf)
    return F.max_pool2d(padded, (rows, columns), 1)
