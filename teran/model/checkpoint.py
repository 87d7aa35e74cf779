"""Reads the authors' `.pth` files: safe unpickling, and the map from their names to ours."""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from teran.errors import CheckpointError
from teran.model.config import TeranConfig, TextConfig

_TEXT = "img_txt_enc.txt_enc.bert_model."
_UNUSED = re.compile(
    r"img_txt_enc\.(txt_enc\.(word_embeddings|map)\.|img_enc\.fc\.|txt_enc\.bert_model\.pooler\.)"
    r"|.*\.position_ids$"
)
"""Tensors the authors' files hold whose results never reach a score (or that are copies)."""


def read(
    path: str | Path, text_config: TextConfig | Mapping[str, Any] | None
) -> tuple[TeranConfig, dict[str, Tensor]]:
    """Read a checkpoint's architecture and its weights under this project's names.

    Raises:
        CheckpointError: the file is missing, unsafe, truncated or of another model.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be loaded safely: {reason}") from error
    if not isinstance(content, dict) or not {"model", "config"} <= content.keys():
        raise CheckpointError(f"{path} is not a TERAN checkpoint: it has no 'model' and 'config'")
    config = TeranConfig.from_authors(content["config"], text_config)
    return config, translate(content["model"], config)


def translate(state: Mapping[str, Tensor], config: TeranConfig) -> dict[str, Tensor]:
    """Rename the authors' tensors, pack BERT's query, key and value, split the box layer.

    Raises:
        CheckpointError: a tensor is missing, left over, or of the wrong shape.
    """
    source = dict(state)
    result: dict[str, Tensor] = {}

    def pop(key: str, *shape: int) -> Tensor:
        if key not in source:
            raise CheckpointError(f"the checkpoint has no tensor {key}")
        tensor = source.pop(key).float()
        if tensor.shape != shape:
            raise CheckpointError(f"{key} has shape {tuple(tensor.shape)}, expected {shape}")
        return tensor

    def affine(ours: str, theirs: str, *weight_shape: int) -> None:
        result[f"{ours}.weight"] = pop(f"{theirs}.weight", *weight_shape)
        result[f"{ours}.bias"] = pop(f"{theirs}.bias", weight_shape[0])

    def layer(ours: str, theirs: str, dim: int, feedforward: int) -> None:
        """One layer of torch's nn.TransformerEncoder."""
        result[f"{ours}.attention.qkv.weight"] = pop(
            f"{theirs}.self_attn.in_proj_weight", 3 * dim, dim
        )
        result[f"{ours}.attention.qkv.bias"] = pop(f"{theirs}.self_attn.in_proj_bias", 3 * dim)
        affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj", dim, dim)
        affine(f"{ours}.attention_norm", f"{theirs}.norm1", dim)
        affine(f"{ours}.expand", f"{theirs}.linear1", feedforward, dim)
        affine(f"{ours}.contract", f"{theirs}.linear2", dim, feedforward)
        affine(f"{ours}.output_norm", f"{theirs}.norm2", dim)

    def bert_layer(ours: str, theirs: str, dim: int, feedforward: int) -> None:
        """One layer of transformers' BertModel."""
        parts = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        for kind, shape in (("weight", (dim, dim)), ("bias", (dim,))):
            result[f"{ours}.attention.qkv.{kind}"] = torch.cat(
                [pop(f"{part}.{kind}", *shape) for part in parts]
            )
        affine(f"{ours}.attention.out", f"{theirs}.attention.output.dense", dim, dim)
        affine(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm", dim)
        affine(f"{ours}.expand", f"{theirs}.intermediate.dense", feedforward, dim)
        affine(f"{ours}.contract", f"{theirs}.output.dense", dim, feedforward)
        affine(f"{ours}.output_norm", f"{theirs}.output.LayerNorm", dim)

    text, features, embed = config.text, config.feature_dim, config.embed_dim
    hidden = text.hidden_size
    embeddings = "textual_encoder.embeddings"
    result[f"{embeddings}.word.weight"] = pop(
        f"{_TEXT}embeddings.word_embeddings.weight", text.vocab_size, hidden
    )
    result[f"{embeddings}.position.weight"] = pop(
        f"{_TEXT}embeddings.position_embeddings.weight", text.max_position_embeddings, hidden
    )
    result[f"{embeddings}.token_type.weight"] = pop(
        f"{_TEXT}embeddings.token_type_embeddings.weight", text.type_vocab_size, hidden
    )
    affine(f"{embeddings}.norm", f"{_TEXT}embeddings.LayerNorm", hidden)
    for i in range(text.num_hidden_layers):
        bert_layer(
            f"textual_encoder.bert.layers.{i}",
            f"{_TEXT}encoder.layer.{i}",
            hidden,
            text.intermediate_size,
        )
    affine("textual_encoder.projection", "img_txt_enc.cap_proj", embed, hidden)

    fusion = "img_txt_enc.img_enc.pos_encoding_image.map"
    first = pop(f"{fusion}.0.weight", features, features + 5)
    result["visual_encoder.box_fusion.features.weight"] = first[:, :features].contiguous()
    result["visual_encoder.box_fusion.geometry.weight"] = first[:, features:].contiguous()
    result["visual_encoder.box_fusion.features.bias"] = pop(f"{fusion}.0.bias", features)
    affine("visual_encoder.box_fusion.out", f"{fusion}.2", features, features)
    for i in range(config.visual_layers):
        layer(
            f"visual_encoder.transformer.layers.{i}",
            f"img_txt_enc.img_enc.transformer_encoder.layers.{i}",
            features,
            config.feedforward_dim,
        )
    affine("visual_encoder.projection", "img_txt_enc.img_proj", embed, features)

    visual_stack = 1 if config.shared_transformer else 2
    for i in range(config.joint_layers):
        name = f"joint.layers.{i}"
        theirs = "img_txt_enc.transformer_encoder_{}.layers.{}"
        layer(f"textual_encoder.{name}", theirs.format(1, i), embed, config.feedforward_dim)
        if config.shared_transformer:
            prefix = f"textual_encoder.{name}."
            for key in [key for key in result if key.startswith(prefix)]:
                result[key.replace("textual_encoder", "visual_encoder", 1)] = result[key]
        else:
            visual = theirs.format(visual_stack, i)
            layer(f"visual_encoder.{name}", visual, embed, config.feedforward_dim)

    left = [key for key in source if not _UNUSED.match(key)]
    if left:
        raise CheckpointError(
            f"the checkpoint holds {len(left)} tensors its config does not explain, "
            f"such as {left[0]}"
        )
    return result
