"""A model in mixed precision, for engines that run what the graph says.

Matmuls, convolutions and embedding tables are in fp16 or bf16. Layer norms, softmax and the
normalisation of the embeddings compute in fp32 (see `teran.model.layers`), and so do inputs and
outputs.
"""

import copy
from typing import TypeVar

import torch
from torch import nn

from teran.errors import ExportError

Module = TypeVar("Module", bound=nn.Module)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(model: Module, precision: str) -> Module:
    """A copy of an fp32 model in "fp16" or "bf16"; in "fp32" the model itself.

    Raises:
        ExportError: a weight does not fit the precision.
    """
    dtype = DTYPES[precision]
    if dtype is torch.float32:
        return model
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            module.to(dtype)
            if not all(parameter.isfinite().all() for parameter in module.parameters()):
                raise ExportError(f"the weights of {name} do not fit {precision}")
    return model
