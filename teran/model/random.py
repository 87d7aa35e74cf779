"""Random weights for a model of any size, to measure speed without a checkpoint."""

import math

import torch
from torch import nn

from teran.model.config import TeranConfig
from teran.model.teran import TeranModel


def random_model(config: TeranConfig, seed: int = 0) -> TeranModel:
    """Make a model whose every tensor is drawn independently, biases and norms included.

    PyTorch's own start leaves biases and norms alike in all layers, and exporters merge equal
    tensors: such a model would be cheaper to run than a real one.
    """
    model = TeranModel(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                noise = torch.randn(tensor.shape, generator=random)
                if isinstance(module, nn.LayerNorm):
                    tensor.copy_(0.1 * noise + (1.0 if name == "weight" else 0.0))
                elif isinstance(module, nn.Embedding):
                    tensor.copy_(0.5 * noise)
                elif name == "weight":
                    tensor.copy_(noise / math.sqrt(tensor.shape[1]))
                else:
                    tensor.copy_(0.1 * noise)
    return model.eval()
