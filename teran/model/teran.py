"""`TeranModel`: both encoders and the alignment, and the ways a model comes in and goes out."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from teran.errors import CheckpointError
from teran.model import alignment, bundle, checkpoint
from teran.model.config import Pooling, TeranConfig, TextConfig
from teran.model.encoders import TextualEncoder, VisualEncoder, joint_transformer, word_mask

_BERT = ("textual_encoder.embeddings.", "textual_encoder.bert.")


class TeranModel(nn.Module):
    """TERAN (Messina et al., TOMM 2021), batch-first.

    Attributes:
        config: the architecture.
        tokenizer: the word-piece tokenizer that goes with the weights, if it is known. The
            authors' checkpoints hold none.
    """

    def __init__(self, config: TeranConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        joint = joint_transformer(config)
        self.textual_encoder = TextualEncoder(config, joint)
        self.visual_encoder = VisualEncoder(
            config, joint if config.shared_transformer else joint_transformer(config)
        )

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        text_config: TextConfig | Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> "TeranModel":
        """Load one of the authors' `.pth` files without running any code it may carry.

        Args:
            path: the file; zip and legacy pickles, tensors of any device.
            text_config: the BERT config, where it is not bert-base-uncased.
            tokenizer: the tokenizer to keep with the model.

        Raises:
            CheckpointError: the file can't be read safely, or is not a TERAN model.
        """
        config, weights = checkpoint.read(path, text_config)
        model = cls(config, tokenizer)
        model.load_state_dict(weights)
        return model.eval()

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "TeranModel":
        """Load a bundle that `save_pretrained` wrote.

        Raises:
            CheckpointError: a file is missing, or does not fit the others.
        """
        config, tokenizer = bundle.read_config(directory), bundle.read_tokenizer(directory)
        model = cls(config, tokenizer)
        bundle.load_weights(model, directory)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and, where known, `tokenizer.json`."""
        bundle.write(directory, self, self.config, self.tokenizer)

    def load_bert(self, directory: str | Path) -> None:
        """Take the first layers of a BERT of transformers for the textual encoder.

        Raises:
            CheckpointError: it can't be read safely, or is of another size.
        """
        text, weights = checkpoint.read_bert(directory)
        ours = self.config.text
        if replace(text, num_hidden_layers=ours.num_hidden_layers) != ours:
            raise CheckpointError(f"{directory} is a BERT of {text}; the model's is {ours}")
        state = self.state_dict()
        taken = {key: weights[key] for key in weights if key in state}
        if len(taken) < sum(key.startswith(_BERT) for key in state):
            raise CheckpointError(
                f"{directory} has {text.num_hidden_layers} layers, fewer than the model's "
                f"{ours.num_hidden_layers}"
            )
        self.load_state_dict(taken, strict=False)

    def save_checkpoint(self, path: str | Path) -> None:
        """Write a `.pth` that the authors' own code loads; the tokenizer is not in it.

        Raises:
            CheckpointError: their code has no such architecture, or the file can't be written.
        """
        checkpoint.write(path, self.state_dict(), self.config)

    def encode_images(
        self, region_features: Tensor, boxes: Tensor, region_mask: Tensor | None = None
    ) -> Tensor:
        """Encode images to region embeddings (B, R, E), L2-normalised, zero at absent regions.

        Args:
            region_features: (B, R, F) float.
            boxes: (B, R, 4), x1 y1 x2 y2 as fractions of the image's width and height.
            region_mask: (B, R), true where there is a region; all of them by default.
        """
        if region_mask is None:
            region_mask = torch.ones(
                region_features.shape[:2], dtype=torch.bool, device=region_features.device
            )
        result: Tensor = self.visual_encoder(region_features, boxes, region_mask)
        return result

    def encode_captions(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode captions to word embeddings (B, L, E), L2-normalised.

        Rows outside `word_mask(attention_mask)` take no part in the alignment, and are zero.

        Args:
            input_ids: (B, L) int64, [CLS] first and [SEP] last.
            attention_mask: (B, L), non-zero where there is a word piece.
        """
        result: Tensor = self.textual_encoder(input_ids, attention_mask, word_mask(attention_mask))
        return result

    def align(
        self,
        region_embeddings: Tensor,
        word_embeddings: Tensor,
        region_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        pooling: Pooling | str | None = None,
    ) -> Tensor:
        """Score every image against every sentence: (N, R, E), (M, W, E) -> (N, M).

        Without masks, zero rows are taken as absent. `pooling` defaults to the model's own.
        """
        return self.align_with_matrix(
            region_embeddings, word_embeddings, region_mask, word_mask, pooling
        )[0]

    def align_with_matrix(
        self,
        region_embeddings: Tensor,
        word_embeddings: Tensor,
        region_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        pooling: Pooling | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `align`, and the region x word matrix (N, M, R, W) the scores were pooled from."""
        return alignment.align(
            region_embeddings,
            word_embeddings,
            region_mask,
            word_mask,
            pooling or self.config.pooling,
        )
