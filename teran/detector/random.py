"""Detectors with random weights, for tests and measurements: as fast as trained ones."""

import torch
from torch import nn

from teran.detector.config import DetectorConfig
from teran.detector.detector import RegionDetector
from teran.detector.network import Bottleneck, FrozenNorm

_BRANCH = 0.3
"""What a residual block adds, so that values stay of one size through all of them."""
_SPREAD = 0.05
"""Of the logits: what is found is as good as chance, but not the same everywhere."""


@torch.no_grad()
def random_detector(config: DetectorConfig, seed: int = 0) -> RegionDetector:
    """A detector whose values are of the size of a trained one's."""
    random = torch.Generator().manual_seed(seed)
    detector = RegionDetector(config)
    for module in detector.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=random)
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(module, FrozenNorm):
            module.weight.fill_(1)
            module.running_var.fill_(1)
    for module in detector.modules():
        if isinstance(module, Bottleneck):
            module.conv3.norm.weight.fill_(_BRANCH)
    detector.proposal_network.backbone.stem.conv1.norm.weight.fill_(1 / 60)  # of pixels
    head = detector.proposal_network.rpn_head
    for layer in (head.objectness_logits, head.anchor_deltas):
        layer.weight.mul_(_SPREAD)
    return detector
