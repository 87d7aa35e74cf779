"""The two graphs of a region detector: photos to what may be objects, and proposals to features.

Norms are in the convolutions. Pooling of regions is an operator that ONNX has; engines that don't
know it get it taken apart into max-pools and look-ups.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from teran.detector import RegionDetector
from teran.detector.config import POOLED, STRIDE
from teran.detector.network import fold_norms
from teran.detector.photo import MEAN
from teran.detector.pooling import levels_of, roi_pool
from teran_export.graphs import Arrays, Fixed, Graph

SIDE_STEP = 32
"""Pixels: sides of photos are brought to a multiple, so that few shapes come and batches form."""
_TOLERANCE = 1e-4


@torch.library.custom_op("teran::roi_pool", mutates_args=())
def roi_pool_operator(features: Tensor, boxes: Tensor) -> Tensor:
    """Pool regions (N, 5), a photo's number and a box each, as many of every photo."""
    return roi_pool(features, boxes.view(len(features), -1, 5)[:, :, 1:])


@roi_pool_operator.register_fake
def _(features: Tensor, boxes: Tensor) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], POOLED, POOLED)


class _Proposals(nn.Module):
    def __init__(self, detector: RegionDetector) -> None:
        super().__init__()
        self.network = copy.deepcopy(detector.proposal_network)
        fold_norms(self.network)

    def forward(self, pixels: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = self.network(pixels, pixel_mask)
        return result


class _Regions(nn.Module):
    def __init__(self, detector: RegionDetector) -> None:
        super().__init__()
        self.network = copy.deepcopy(detector.region_network)
        fold_norms(self.network)

    def forward(self, res4: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor]:
        batch, count = proposals.shape[:2]
        features, classes = self.network(self.pool(res4, proposals))
        return features.view(batch, count, -1), classes.view(batch, count, -1)

    def pool(self, res4: Tensor, proposals: Tensor) -> Tensor:
        batch, count = proposals.shape[:2]
        photo = torch.arange(batch, dtype=proposals.dtype, device=proposals.device)
        numbered = torch.cat([photo[:, None, None].expand(batch, count, 1), proposals], dim=-1)
        result: Tensor = torch.ops.teran.roi_pool(res4, numbered.reshape(-1, 5))
        return result


class _PortableRegions(_Regions):
    """Without an operator for pooling."""

    def __init__(self, detector: RegionDetector) -> None:
        super().__init__(detector)
        self.levels = levels_of(detector.config.max_side)

    def pool(self, res4: Tensor, proposals: Tensor) -> Tensor:
        return roi_pool(res4, proposals, self.levels)


def _photos(
    graph: Graph,  # noqa: ARG001
    random: np.random.Generator,
    config: Any,  # noqa: ARG001
    sizes: Sequence[int],
) -> Arrays:
    """Blurred noise, the first as large as can be, the others a little smaller."""
    batch, height, width = sizes
    pixels = random.uniform(0, 255, (batch, 3, height // 16, width // 16))
    pixels = pixels.repeat(16, axis=2).repeat(16, axis=3)
    pixels += random.normal(0, 12, pixels.shape)
    pixels = pixels.clip(0, 255) - np.array(MEAN)[:, None, None]
    mask = np.ones((batch, height, width), np.bool_)
    for i in range(1, batch):
        mask[i, height - random.integers(0, SIDE_STEP) :] = False
        mask[i, :, width - random.integers(0, SIDE_STEP) :] = False
    return {"pixels": (pixels * mask[:, None]).astype(np.float32), "pixel_mask": mask}


def _maps(
    graph: Graph,  # noqa: ARG001
    random: np.random.Generator,
    config: Any,
    sizes: Sequence[int],
) -> Arrays:
    """Values as after a rectifier, and boxes in the map."""
    batch, height, width, count = sizes
    res4 = random.normal(0, 1, (batch, config.res4_channels, height, width)).clip(0)
    limits = STRIDE * np.array([width, height]) - 1
    corners = random.random((2, batch, count, 2)) * limits
    boxes = np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=-1)
    return {"res4": res4.astype(np.float32), "proposals": boxes.astype(np.float32)}


PROPOSAL_NETWORK = Graph(
    "proposal_network",
    {"pixels": ("batch", 3, "height", "width"), "pixel_mask": ("batch", "height", "width")},
    ("res4", "objectness", "deltas"),
    _Proposals,
    _photos,
    _TOLERANCE,
    ((2, 96, 160), (1, 64, 224), (3, 128, 96)),
    {"height": SIDE_STEP, "width": SIDE_STEP},
    is_transformer=False,
    kept_in_float=("rpn_head.objectness_logits", "rpn_head.anchor_deltas"),
)
REGION_NETWORK = Graph(
    "region_network",
    {
        "res4": ("batch", Fixed("res4_channels"), "map_height", "map_width"),
        "proposals": ("batch", "proposals", 4),
    },
    ("proposal_features", "class_scores"),
    _Regions,
    _maps,
    _TOLERANCE,
    ((2, 6, 10, 5), (1, 4, 14, 3), (3, 8, 6, 2)),
    is_transformer=False,
    kept_in_float=("cls_score",),
)
PORTABLE_REGION_NETWORK = replace(REGION_NETWORK, module=_PortableRegions)
"""For engines that start from PyTorch."""
