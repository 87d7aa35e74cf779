"""Regions of a feature map as cells of one size, each the largest value in its part (ROIPool)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from teran.detector.network import POOLED, STRIDE


def roi_pool(features: Tensor, boxes: Tensor) -> Tensor:
    """Pool regions, as Caffe does: corners are rounded to cells, the last one is inside.

    The largest value of a window is that of two overlapping ones whose sides are powers of two,
    each way. So a few pooled maps and four look-ups a cell are enough, whatever the sizes.

    Args:
        features: (C, h, w)
        boxes: (R, 4), in the pixels of the network's input.

    Returns:
        (R, C, 14, 14)
    """
    channels, height, width = features.shape
    corners = torch.floor(boxes / STRIDE + 0.5).long()
    top, rows = _windows(corners[:, 1], corners[:, 3], height)
    left, columns = _windows(corners[:, 0], corners[:, 2], width)
    levels = int(torch.maximum(rows.max(), columns.max()).clamp(min=1)).bit_length()
    maps = [
        _pooled(features, 1 << i, 1 << j).reshape(channels, -1)
        for i in range(levels)
        for j in range(levels)
    ]
    table = torch.cat(maps, dim=1)  # (C, levels^2 x h x w)
    row_level, column_level = _level(rows), _level(columns)
    plane = (row_level[:, :, None] * levels + column_level[:, None, :]) * (height * width)
    best: Tensor | None = None
    for first_row in (top, top + rows - (1 << row_level)):
        for first_column in (left, left + columns - (1 << column_level)):
            where = plane + first_row[:, :, None] * width + first_column[:, None, :]
            found = table[:, where.clamp(0, table.shape[1] - 1).flatten()]
            best = found if best is None else torch.maximum(best, found)
    assert best is not None
    empty = ((rows < 1)[:, :, None] | (columns < 1)[:, None, :]).flatten()
    cells = best.masked_fill(empty, 0).view(channels, len(boxes), POOLED, POOLED)
    return cells.transpose(0, 1).contiguous()


def _windows(first: Tensor, last: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where each of a region's 14 parts begins, and how many cells it has: (R, 14) each."""
    length = (last - first + 1).clamp(min=1)
    part = torch.arange(POOLED, device=first.device)
    # In fp32, as Caffe divides: that decides where a part of 14 ends exactly between two cells.
    step = length.to(torch.float32)[:, None] / POOLED
    start = torch.floor(part * step).long() + first[:, None]
    end = torch.ceil((part + 1) * step).long() + first[:, None]
    start, end = start.clamp(0, size), end.clamp(0, size)
    return start, end - start


def _level(lengths: Tensor) -> Tensor:
    """The largest power of two in a length, as an exponent."""
    return torch.floor(torch.log2(lengths.clamp(min=1).float())).long()


def _pooled(features: Tensor, rows: int, columns: int) -> Tensor:
    """The largest value of the window that begins at each cell, as far as it lies in the map."""
    padded = F.pad(features[None], (0, columns - 1, 0, rows - 1), value=-torch.inf)
    return F.max_pool2d(padded, (rows, columns), 1)[0]
