"""A model in mixed precision, for engines that run what the graph says.

Matmuls and embedding tables are in fp16 or bf16. Layer norms, softmax and the normalisation of the
embeddings compute in fp32 (see `teran.model.layers`), and so do inputs and outputs.
"""

import copy

import torch
from torch import nn

from teran.errors import ExportError
from teran.model.teran import TeranModel

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def in_precision(model: TeranModel, precision: str) -> TeranModel:
    """A copy of an fp32 model in "fp16" or "bf16"; in "fp32" the model itself.

    Raises:
        ExportError: a weight does not fit the precision.
    """
    dtype = DTYPES[precision]
    if dtype is torch.float32:
        return model
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.to(dtype)
            if not all(parameter.isfinite().all() for parameter in module.parameters()):
                raise ExportError(f"the weights of {name} do not fit {precision}")
    return model
