"""The detector's two networks: from a photo to what may be objects, and from regions to features.

Caffe's ResNet: the stride is in a block's first 1x1 convolution, its batch norms are frozen, its
first pooling rounds up; res5 keeps the resolution and is dilated instead.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teran.detector.config import DetectorConfig

ANCHORS = 12
POOLED = 14
"""Cells of a region, each way."""
STRIDE = 16
"""Pixels of a cell of the feature map."""
_EPS = 1e-5


class FrozenNorm(nn.Module):
    """Batch norm by the statistics of training."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + _EPS).rsqrt()
        shift = self.bias - self.running_mean * scale
        result: Tensor = x * scale[:, None, None] + shift[:, None, None]
        return result


class Conv(nn.Conv2d):
    """A convolution without bias, and its norm."""

    def __init__(
        self, channels: int, out: int, size: int, *, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (size // 2)
        super().__init__(channels, out, size, stride, padding, dilation, bias=False)
        self.norm = FrozenNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(super().forward(x))
        return result


class Bottleneck(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, width: int, out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = None if channels == out else Conv(channels, out, 1, stride=stride)
        self.conv1 = Conv(channels, width, 1, stride=stride)
        self.conv2 = Conv(width, width, 3, dilation=dilation)
        self.conv3 = Conv(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        inner = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(inner) + around)


def stage(
    config: DetectorConfig, number: int, channels: int, stride: int, dilation: int = 1
) -> nn.Sequential:
    """One of res2 to res5."""
    factor = 2 ** (number - 2)
    out, width = config.res2_channels * factor, config.width_per_group * factor
    blocks = [Bottleneck(channels, width, out, stride, dilation)]
    blocks += [
        Bottleneck(out, width, out, 1, dilation) for _ in range(config.blocks[number - 2] - 1)
    ]
    return nn.Sequential(*blocks)


class Stem(nn.Module):
    """The first convolution, and a pooling that rounds up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(3, channels, 7, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv1(x)), 3, 2, 0, ceil_mode=True)


class Backbone(nn.Module):
    """ResNet up to res4."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem_channels)
        self.res2 = stage(config, 2, config.stem_channels, 1)
        self.res3 = stage(config, 3, config.res2_channels, 2)
        self.res4 = stage(config, 4, 2 * config.res2_channels, 2)

    def forward(self, photos: Tensor) -> Tensor:
        result: Tensor = self.res4(self.res3(self.res2(self.stem(photos))))
        return result


class ProposalHead(nn.Module):
    """Of each anchor at each cell: logits of background and foreground, and a box."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(config.res4_channels, config.rpn_channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(config.rpn_channels, 2 * ANCHORS, 1)
        self.anchor_deltas = nn.Conv2d(config.rpn_channels, 4 * ANCHORS, 1)

    def forward(self, res4: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.relu(self.conv(res4))
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class ProposalNetwork(nn.Module):
    """A photo to its feature map, and to what may be an object where."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config)
        self.rpn_head = ProposalHead(config)

    def forward(self, photos: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Photos (B, 3, H, W), BGR less the mean.

        Returns:
            res4 (B, C, h, w), objectness (B, 12, h, w) and deltas (B, 48, h, w).
        """
        res4 = self.backbone(photos)
        logits, deltas = self.rpn_head(res4)
        background, foreground = logits.split(ANCHORS, dim=1)
        return res4, torch.sigmoid(foreground - background), deltas


class RegionNetwork(nn.Module):
    """Cells of regions to their features, and to what they are."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.res5 = stage(config, 5, config.res4_channels, 1, dilation=2)
        self.cls_score = nn.Linear(config.feature_dim, 1 + config.classes)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (R, C, 14, 14).

        Returns:
            Features (R, F), and probabilities (R, 1 + classes), the background first.
        """
        features = self.res5(cells).mean(dim=(2, 3))
        return features, self.cls_score(features).softmax(dim=-1)
