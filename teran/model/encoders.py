"""The two pipelines that turn an image and a sentence into sets of vectors in one space."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teran.model.config import TeranConfig, TextConfig
from teran.model.layers import LayerNorm, Transformer, attention_bias, normalise


def word_mask(attention_mask: Tensor) -> Tensor:
    """The positions that take part in the alignment.

    The first ([CLS]) and the last two word pieces (normally the final full stop and [SEP]) never
    do: the authors' alignment drops them, in training too.

    Args:
        attention_mask: (B, L), non-zero for [CLS], the word pieces and [SEP]; padding at the end.

    Returns:
        (B, L) bool.
    """
    present = attention_mask != 0
    position = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    length = present.sum(dim=1, keepdim=True)
    return (position > 0) & (position < length - 2)


def joint_transformer(config: TeranConfig) -> Transformer:
    """The layers after the projection into the common space."""
    return Transformer(
        config.joint_layers,
        config.embed_dim,
        config.num_attention_heads,
        config.feedforward_dim,
        dropout=config.dropout,
    )


class BoxFusion(nn.Module):
    """Mixes a region's geometry into its features ("concat-and-process").

    The first layer acts on [features, x1, y1, x2, y2, area]. It is kept as two matmuls, because a
    2053-wide one fits no hardware tile.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.features = nn.Linear(dim, dim)
        self.geometry = nn.Linear(5, dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.split(1, dim=-1)
        geometry = torch.cat([boxes, (x2 - x1) * (y2 - y1)], dim=-1)
        dtype = self.out.weight.dtype
        mixed = self.features(features.to(dtype)) + self.geometry(geometry.to(dtype))
        return self.out(F.relu(mixed))


class VisualEncoder(nn.Module):
    """Regions to region embeddings. The image's CLS row is added and taken away inside."""

    def __init__(self, config: TeranConfig, joint: Transformer) -> None:
        super().__init__()
        self.box_fusion = BoxFusion(config.feature_dim)
        self.transformer = Transformer(
            config.visual_layers,
            config.feature_dim,
            config.num_attention_heads,
            config.feedforward_dim,
            dropout=config.dropout,
        )
        self.projection = nn.Linear(config.feature_dim, config.embed_dim)
        self.joint = joint

    def forward(self, region_features: Tensor, boxes: Tensor, region_mask: Tensor) -> Tensor:
        """Encode (B, R, F) features, (B, R, 4) boxes and a (B, R) mask to (B, R, E)."""
        # The CLS row is a region of zero features and a zero box.
        bias = attention_bias(F.pad(region_mask.to(boxes.dtype), (1, 0), value=1.0))
        x = self.box_fusion(F.pad(region_features, (0, 0, 1, 0)), F.pad(boxes, (0, 0, 1, 0)))
        x = self.projection(self.transformer(x, bias))
        return normalise(self.joint(x, bias)[:, 1:], region_mask)


class BertEmbeddings(nn.Module):
    """Word, position and type embeddings, summed and normalised."""

    def __init__(self, config: TextConfig, dropout: float) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor) -> Tensor:
        position = self.position.weight[: input_ids.shape[1]] + self.token_type.weight[0]
        return self.dropout(self.norm(self.word(input_ids) + position))


class TextualEncoder(nn.Module):
    """Word pieces to word embeddings: the first BERT layers, then the common space."""

    def __init__(self, config: TeranConfig, joint: Transformer) -> None:
        super().__init__()
        text = config.text
        self.embeddings = BertEmbeddings(text, config.dropout)
        self.bert = Transformer(
            text.num_hidden_layers,
            text.hidden_size,
            text.num_attention_heads,
            text.intermediate_size,
            activation="gelu",
            eps=text.layer_norm_eps,
            dropout=config.dropout,
        )
        self.projection = nn.Linear(text.hidden_size, config.embed_dim)
        self.joint = joint

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_mask: Tensor) -> Tensor:
        """Encode (B, L) ids to (B, L, E); rows outside `word_mask` (B, L) are zero."""
        bias = attention_bias(attention_mask != 0)
        x = self.projection(self.bert(self.embeddings(input_ids), bias))
        return normalise(self.joint(x, bias), word_mask)
