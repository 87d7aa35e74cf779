"""The authors' `.pth` files, read and written: safe unpickling, and whose tensor is which."""

import argparse
import json
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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


def read_bert(directory: str | Path) -> tuple[TextConfig, dict[str, Tensor]]:
    """Read a BERT that was trained before, as it lies in a directory of transformers.

    Args:
        directory: with `config.json` and `model.safetensors` or `pytorch_model.bin`.

    Returns:
        Its config, with all its layers, and the weights under this project's names.

    Raises:
        CheckpointError: a file is missing, unsafe or of another model.
    """
    directory = Path(directory)
    try:
        text = TextConfig.from_dict(json.loads((directory / "config.json").read_bytes()))
        if (path := directory / "model.safetensors").is_file():
            state = load_file(path)
        else:
            path = directory / "pytorch_model.bin"
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{directory} holds no BERT that can be read: {error}") from error
    source = {_TEXT + _bert_name(key): tensor for key, tensor in state.items()}
    return text, _translated(source, _bert(text))


def _bert_name(key: str) -> str:
    """A tensor's name without what is before the model in some files, and as it is now."""
    name = key.removeprefix("bert.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def write(path: str | Path, state: Mapping[str, Tensor], config: TeranConfig) -> None:
    """Write a checkpoint that the authors' own code loads.

    What never reaches a score is left out; their code then keeps its own.

    Args:
        path: the file.
        state: the weights, under this project's names.
        config: the architecture.

    Raises:
        CheckpointError: the authors' code has no such architecture, or can't be written to there.
    """
    authors = config.to_authors()
    content = {
        "epoch": 0,
        "model": restore(state, config),
        "optimizer": {},
        "scheduler": None,
        "opt": argparse.Namespace(),
        "config": authors,
        "Eiters": 0,
    }
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        torch.save(content, unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own, where there is no such directory
        raise CheckpointError(f"can't write {path}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def translate(state: Mapping[str, Tensor], config: TeranConfig) -> dict[str, Tensor]:
    """Bring the authors' tensors under this project's names.

    Raises:
        CheckpointError: a tensor is missing, left over, or of the wrong shape.
    """
    source = dict(state)
    result = _translated(source, _ties(config))
    if config.shared_transformer:
        result |= {_of_images(key): result[key] for key in result if _is_joint(key)}
    left = [key for key in source if not _UNUSED.match(key)]
    if left:
        raise CheckpointError(
            f"the checkpoint holds {len(left)} tensors its config does not explain, "
            f"such as {left[0]}"
        )
    return result


def _translated(source: dict[str, Tensor], ties: Iterable["_Tie"]) -> dict[str, Tensor]:
    """Take tensors out of a source, and bring them under our names."""
    result: dict[str, Tensor] = {}
    for tie in ties:
        parts = []
        for key, shape in tie.theirs.items():
            if key not in source:
                raise CheckpointError(f"the checkpoint has no tensor {key}")
            parts.append(source.pop(key).float())
            if parts[-1].shape != shape:
                raise CheckpointError(f"{key} has shape {tuple(parts[-1].shape)}, expected {shape}")
        result |= _divided(parts, tie.ours, tie.axis)
    return result


def restore(state: Mapping[str, Tensor], config: TeranConfig) -> dict[str, Tensor]:
    """Bring this project's tensors under the authors' names: what `translate` undoes."""
    result: dict[str, Tensor] = {}
    for tie in _ties(config):
        parts = [state[key].detach().cpu() for key in tie.ours]
        result |= _divided(parts, tie.theirs, tie.axis)
    return result


Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Tie:
    """Tensors of ours and of theirs: the same, once each are put together along an axis."""

    ours: dict[str, Shape]
    theirs: dict[str, Shape]
    axis: int = 0


def _divided(parts: list[Tensor], shapes: Mapping[str, Shape], axis: int) -> dict[str, Tensor]:
    sizes = [shape[axis] for shape in shapes.values()]
    pieces = torch.cat(parts, axis).split(sizes, axis)
    return {key: piece.contiguous() for key, piece in zip(shapes, pieces, strict=True)}


def _is_joint(key: str) -> bool:
    return key.startswith("textual_encoder.joint.")


def _of_images(key: str) -> str:
    return key.replace("textual_encoder", "visual_encoder", 1)


def _same(ours: str, theirs: str, *shape: int) -> Iterator[_Tie]:
    yield _Tie({ours: shape}, {theirs: shape})


def _affine(ours: str, theirs: str, *weight: int) -> Iterator[_Tie]:
    yield from _same(f"{ours}.weight", f"{theirs}.weight", *weight)
    yield from _same(f"{ours}.bias", f"{theirs}.bias", weight[0])


def _layer(ours: str, theirs: str, dim: int, feedforward: int) -> Iterator[_Tie]:
    """One layer of torch's nn.TransformerEncoder."""
    attention = f"{ours}.attention.qkv"
    yield from _same(f"{attention}.weight", f"{theirs}.self_attn.in_proj_weight", 3 * dim, dim)
    yield from _same(f"{attention}.bias", f"{theirs}.self_attn.in_proj_bias", 3 * dim)
    yield from _affine(f"{ours}.attention.out", f"{theirs}.self_attn.out_proj", dim, dim)
    yield from _affine(f"{ours}.attention_norm", f"{theirs}.norm1", dim)
    yield from _affine(f"{ours}.expand", f"{theirs}.linear1", feedforward, dim)
    yield from _affine(f"{ours}.contract", f"{theirs}.linear2", dim, feedforward)
    yield from _affine(f"{ours}.output_norm", f"{theirs}.norm2", dim)


def _bert_layer(ours: str, theirs: str, dim: int, feedforward: int) -> Iterator[_Tie]:
    """One layer of transformers' BertModel."""
    for kind, one, all_three in (
        ("weight", (dim, dim), (3 * dim, dim)),
        ("bias", (dim,), (3 * dim,)),
    ):
        names = [f"{theirs}.attention.self.{name}.{kind}" for name in ("query", "key", "value")]
        yield _Tie({f"{ours}.attention.qkv.{kind}": all_three}, dict.fromkeys(names, one))
    yield from _affine(f"{ours}.attention.out", f"{theirs}.attention.output.dense", dim, dim)
    yield from _affine(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm", dim)
    yield from _affine(f"{ours}.expand", f"{theirs}.intermediate.dense", feedforward, dim)
    yield from _affine(f"{ours}.contract", f"{theirs}.output.dense", dim, feedforward)
    yield from _affine(f"{ours}.output_norm", f"{theirs}.output.LayerNorm", dim)


def _bert(text: TextConfig) -> Iterator[_Tie]:
    ours, theirs, hidden = "textual_encoder.embeddings", f"{_TEXT}embeddings", text.hidden_size
    for name, rows in (
        ("word", text.vocab_size),
        ("position", text.max_position_embeddings),
        ("token_type", text.type_vocab_size),
    ):
        their_name = f"{theirs}.{name}_embeddings.weight"
        yield from _same(f"{ours}.{name}.weight", their_name, rows, hidden)
    yield from _affine(f"{ours}.norm", f"{theirs}.LayerNorm", hidden)
    for i in range(text.num_hidden_layers):
        layer = f"textual_encoder.bert.layers.{i}"
        yield from _bert_layer(layer, f"{_TEXT}encoder.layer.{i}", hidden, text.intermediate_size)


def _ties(config: TeranConfig) -> Iterator[_Tie]:
    features, embed, feedforward = config.feature_dim, config.embed_dim, config.feedforward_dim
    yield from _bert(config.text)
    text_projection = "textual_encoder.projection"
    yield from _affine(text_projection, "img_txt_enc.cap_proj", embed, config.text.hidden_size)
    ours, theirs = "visual_encoder.box_fusion", "img_txt_enc.img_enc.pos_encoding_image.map"
    yield _Tie(
        {f"{ours}.features.weight": (features, features), f"{ours}.geometry.weight": (features, 5)},
        {f"{theirs}.0.weight": (features, features + 5)},
        axis=1,
    )
    yield from _same(f"{ours}.features.bias", f"{theirs}.0.bias", features)
    yield from _affine(f"{ours}.out", f"{theirs}.2", features, features)
    for i in range(config.visual_layers):
        layer = f"visual_encoder.transformer.layers.{i}"
        their_layer = f"img_txt_enc.img_enc.transformer_encoder.layers.{i}"
        yield from _layer(layer, their_layer, features, feedforward)
    yield from _affine("visual_encoder.projection", "img_txt_enc.img_proj", embed, features)
    for i in range(config.joint_layers):
        name, their_name = f"joint.layers.{i}", "img_txt_enc.transformer_encoder_{}.layers.{}"
        yield from _layer(f"textual_encoder.{name}", their_name.format(1, i), embed, feedforward)
        if not config.shared_transformer:
            yield from _layer(f"visual_encoder.{name}", their_name.format(2, i), embed, feedforward)
