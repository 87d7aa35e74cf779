"""The detector's two networks: from a photo to what may be objects, and from regions to features.

Caffe's ResNet: the stride is in a block's first 1x1 convolution, its batch norms are frozen, its
first pooling rounds up; res5 keeps the resolution and is dilated instead.

Photos of different sizes go through together, exactly: what lies beyond a photo is zero wherever a
convolution looks at neighbours, as it is beyond the edge of a photo by itself.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teran.detector.config import ANCHORS, DetectorConfig

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

    def affine(self) -> tuple[Tensor, Tensor]:
        """What values are multiplied by, and what is added then: (C,) each."""
        scale = self.weight * (self.running_var + _EPS).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.affine()
        return x * scale[:, None, None] + shift[:, None, None]


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

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """A convolution that does the norm's work too."""
        scale, shift = self.norm.affine()
        result: nn.Conv2d = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        result.weight.copy_(self.weight * scale[:, None, None, None])
        result.bias = nn.Parameter(shift, requires_grad=False)
        return result


class Bottleneck(nn.Module):
    """A residual block."""

    def __init__(self, channels: int, width: int, out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.shortcut = None if channels == out else Conv(channels, out, 1, stride=stride)
        self.conv1 = Conv(channels, width, 1, stride=stride)
        self.conv2 = Conv(width, width, 3, dilation=dilation)
        self.conv3 = Conv(width, out, 1)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        around = x if self.shortcut is None else self.shortcut(x)
        inner = _cut(F.relu(self.conv1(x)), inside)
        return F.relu(self.conv3(F.relu(self.conv2(inner))) + around)


class Stage(nn.Sequential):
    """One of res2 to res5."""

    def __init__(
        self, config: DetectorConfig, number: int, channels: int, stride: int, dilation: int = 1
    ) -> None:
        factor = 2 ** (number - 2)
        out, width = config.res2_channels * factor, config.width_per_group * factor
        first = Bottleneck(channels, width, out, stride, dilation)
        others = config.blocks[number - 2] - 1
        super().__init__(first, *(Bottleneck(out, width, out, 1, dilation) for _ in range(others)))

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, inside)
        return x


class Stem(nn.Module):
    """The first convolution, and a pooling that rounds up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(3, channels, 7, stride=2)

    def forward(self, x: Tensor, inside: Tensor | None = None) -> Tensor:
        return F.max_pool2d(_cut(F.relu(self.conv1(x)), inside), 3, 2, 0, ceil_mode=True)


class Backbone(nn.Module):
    """ResNet up to res4."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem_channels)
        self.res2 = Stage(config, 2, config.stem_channels, 1)
        self.res3 = Stage(config, 3, config.res2_channels, 2)
        self.res4 = Stage(config, 4, 2 * config.res2_channels, 2)

    def forward(self, pixels: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        inside: list[Tensor | None] = [None] * 4
        if pixel_mask is not None:
            whole = pixel_mask[:, None].to(pixels.dtype)
            half = whole[:, :, ::2, ::2]
            quarter = half[:, :, 1::2, 1::2]
            eighth = quarter[:, :, ::2, ::2]
            inside = [half, quarter, eighth, eighth[:, :, ::2, ::2]]
        res2 = self.res2(self.stem(pixels, inside[0]), inside[1])
        return _cut(self.res4(self.res3(res2, inside[2]), inside[3]), inside[3])


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

    def forward(
        self, pixels: Tensor, pixel_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find what may be objects.

        Args:
            pixels: (B, 3, H, W), BGR less the mean.
            pixel_mask: (B, H, W), what is inside the photos: from the left and the top on. The
                sides are multiples of 32 then, and the pixels outside are zero.

        Returns:
            res4 (B, C, h, w), objectness (B, 12, h, w) and deltas (B, 48, h, w); res4 is zero
            outside, the others make no sense there.
        """
        dtype = self.rpn_head.conv.weight.dtype  # the others' too; sums and results are in fp32
        res4 = self.backbone(pixels.to(dtype), pixel_mask)
        logits, deltas = self.rpn_head(res4)
        background, foreground = logits.split(ANCHORS, dim=1)
        objectness = torch.sigmoid(foreground.float() - background.float())
        return res4.float(), objectness, deltas.float()


class RegionNetwork(nn.Module):
    """Cells of regions to their features, and to what they are."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.res5 = Stage(config, 5, config.res4_channels, 1, dilation=2)
        self.cls_score = nn.Linear(config.feature_dim, 1 + config.classes)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (R, C, 14, 14).

        Returns:
            Features (R, F), and probabilities (R, 1 + classes), the background first.
        """
        dtype = self.cls_score.weight.dtype
        features = self.res5(cells.to(dtype)).float().mean(dim=(2, 3))
        return features, self.cls_score(features.to(dtype)).float().softmax(dim=-1)


def _cut(x: Tensor, inside: Tensor | None) -> Tensor:
    """Zeros for what lies outside a photo."""
    return x if inside is None else x * inside


def fold_norms(network: nn.Module) -> None:
    """Put every norm into its convolution, in place: the same to the last digits, and quicker."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, Conv):
                setattr(module, name, child.folded())
