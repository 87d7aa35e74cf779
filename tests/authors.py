"""Makes checkpoints as the authors' code writes them, with weights drawn by a published formula."""

import argparse
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch


def authors_config(
    mode: str = "MrSw", *, shared: bool = False, dataset: str = "coco"
) -> dict[str, Any]:
    return {
        "dataset": {"name": dataset},
        "text-model": {
            "name": "bert", "pretrain": "bert-base-uncased", "word-dim": 12,
            "extraction-hidden-layer": 2, "layers": 0, "dropout": 0.1,
        },
        "image-model": {
            "name": "bottomup", "transformer-layers": 1, "dropout": 0.1,
            "pos-encoding": "concat-and-process", "feat-dim": 8, "norm": True,
        },
        "model": {
            "name": "teran", "embed-size": 8, "layers": 1, "shared-transformer": shared,
            "dropout": 0.1,
        },
        "training": {"alignment-mode": mode, "margin": 0.2, "max-violation": True},
    }  # fmt: skip


TEXT_CONFIG = {
    "vocab_size": 200,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def state_dict(config: dict[str, Any], text: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of the authors' model, under their names, drawn by the formula."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    features, embed = config["image-model"]["feat-dim"], config["model"]["embed-size"]
    shapes: dict[str, tuple[int, ...]] = {}

    def affine(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    bert = "img_txt_enc.txt_enc.bert_model"
    for name, rows in (
        ("word", text["vocab_size"]),
        ("position", text["max_position_embeddings"]),
        ("token_type", 2),
    ):
        shapes[f"{bert}.embeddings.{name}_embeddings.weight"] = (rows, hidden)
    affine(f"{bert}.embeddings.LayerNorm", hidden)
    for i in range(config["text-model"]["extraction-hidden-layer"]):
        layer = f"{bert}.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            affine(f"{layer}.attention.self.{part}", hidden, hidden)
        affine(f"{layer}.attention.output.dense", hidden, hidden)
        affine(f"{layer}.attention.output.LayerNorm", hidden)
        affine(f"{layer}.intermediate.dense", inner, hidden)
        affine(f"{layer}.output.dense", hidden, inner)
        affine(f"{layer}.output.LayerNorm", hidden)
    affine(f"{bert}.pooler.dense", hidden, hidden)
    shapes["img_txt_enc.txt_enc.word_embeddings.weight"] = (text["vocab_size"], hidden)
    affine("img_txt_enc.txt_enc.map", embed, hidden)

    def encoder(name: str, layers: int, dim: int) -> None:
        for i in range(layers):
            layer = f"img_txt_enc.{name}.layers.{i}"
            shapes[f"{layer}.self_attn.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}.self_attn.in_proj_bias"] = (3 * dim,)
            affine(f"{layer}.self_attn.out_proj", dim, dim)
            affine(f"{layer}.linear1", 2048, dim)
            affine(f"{layer}.linear2", dim, 2048)
            affine(f"{layer}.norm1", dim)
            affine(f"{layer}.norm2", dim)

    encoder("img_enc.transformer_encoder", config["image-model"]["transformer-layers"], features)
    affine("img_txt_enc.img_enc.pos_encoding_image.map.0", features, features + 5)
    affine("img_txt_enc.img_enc.pos_encoding_image.map.2", features, features)
    affine("img_txt_enc.img_enc.fc", embed, features)
    affine("img_txt_enc.img_proj", embed, features)
    affine("img_txt_enc.cap_proj", embed, hidden)
    encoder("transformer_encoder_1", config["model"]["layers"], embed)
    if not config["model"]["shared-transformer"]:
        encoder("transformer_encoder_2", config["model"]["layers"], embed)
    return {key: _draw(key, shape) for key, shape in shapes.items()}


def _draw(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    tied = "txt_enc.word_embeddings.weight"
    name = key.replace(tied, "txt_enc.bert_model.embeddings.word_embeddings.weight")
    random = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = random.standard_normal(shape, dtype=np.float32)
    if len(shape) == 2:
        if "embeddings" in name:
            values *= np.float32(1.0 if "word" in name else 0.5)
        else:
            values *= np.float32(1 / np.sqrt(shape[1]))
    elif "norm" in name.lower() and name.endswith("weight"):
        values = np.float32(1) + np.float32(0.1) * values
    else:
        values = np.float32(0.1) * values
    return torch.from_numpy(values)


def write_checkpoint(
    path: Path,
    config: dict[str, Any],
    text: dict[str, Any] | None = None,
    *,
    legacy: bool = False,
    adam: bool = False,
) -> Path:
    """Write a `.pth` as the authors' training does."""
    model = state_dict(config, text or TEXT_CONFIG)
    optimizer = {
        "state": {0: {"step": 3, "exp_avg": torch.ones(4)}},
        "param_groups": [{"lr": 1e-5}],
    }
    content = {
        "epoch": 3,
        "model": model,
        "optimizer": optimizer if adam else {},
        "scheduler": None,
        "opt": argparse.Namespace(num_epochs=30, config="configs/teran.yaml"),
        "config": config,
        "Eiters": 10,
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path
