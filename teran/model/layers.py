"""The post-norm Transformer layer that BERT and both TERAN pipelines are made of.

Written out in plain operators rather than through fused modules: the exported graphs then hold
exactly these matmuls, and query, key and value come from one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ABSENT = -3.0e4
"""Added to the logits of absent positions: exp() of it is exactly 0, and it fits fp16."""


def attention_bias(mask: Tensor) -> Tensor:
    """Turn a mask (B, L), true where present, into an additive bias (B, 1, 1, L)."""
    return (1.0 - mask.to(torch.get_default_dtype()))[:, None, None, :] * _ABSENT


def widened(x: Tensor) -> Tensor:
    """Half precision as fp32; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def normalise(vectors: Tensor, mask: Tensor) -> Tensor:
    """L2-normalise the rows (B, L, E) that `mask` (B, L) keeps, and zero the others; in fp32."""
    return F.normalize(widened(vectors), dim=-1, eps=1e-12) * mask[..., None]


class LayerNorm(nn.LayerNorm):
    """Normalises in fp32, whatever its input's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(widened(x)).to(x.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed query-key-value projection."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, dim = x.shape
        # Split by heads first: one kernel then, and the projection's bias is added in its matmul.
        packed = self.qkv(x).view(batch, length, 3 * self.heads, -1).transpose(1, 2)
        q, k, v = packed.chunk(3, dim=1)
        # Scaled before the product, which then fits fp16; the softmax is in fp32 always.
        logits = widened(torch.matmul(q * self.scale, k.transpose(-1, -2))) + bias
        weights = logits.softmax(dim=-1).to(v.dtype)
        context = torch.matmul(self.dropout(weights), v).transpose(1, 2)
        return self.out(context.reshape(batch, length, dim))


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward net, each followed by residual and LayerNorm."""

    def __init__(
        self, dim: int, heads: int, feedforward: int, activation: str, eps: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, dropout)
        self.attention_norm = LayerNorm(dim, eps=eps)
        self.expand = nn.Linear(dim, feedforward)
        self.activation = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]()
        self.contract = nn.Linear(feedforward, dim)
        self.output_norm = LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, bias)))
        hidden = self.activation(self.expand(x))
        return self.output_norm(x + self.dropout(self.contract(hidden)))


class Transformer(nn.Module):
    """A stack of layers over (B, L, D) with an additive attention bias (B, 1, 1, L)."""

    def __init__(
        self,
        layers: int,
        dim: int,
        heads: int,
        feedforward: int,
        *,
        activation: str = "relu",
        eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(dim, heads, feedforward, activation, eps, dropout)
            for _ in range(layers)
        )

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, bias)
        return x
