"""The typed description of a TERAN model, and how the authors' nested dict maps onto it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from teran.errors import CheckpointError


class Pooling(StrEnum):
    """How the region x word cosine matrix becomes one score (paper, section 3.3)."""

    MRSW = "MrSw"
    """Best region of every word, summed over words."""
    MRAVGW = "MrAVGw"
    """Best region of every word, averaged over words."""
    MWSR = "MwSr"
    """Best word of every region, summed over regions."""
    SYMM = "symm"
    """MrSw + MwSr."""
    SUM = "sum"
    """Sum of the whole matrix."""
    MEAN = "mean"
    """Sum of the whole matrix over the size of the evaluation's padded matrix."""
    SCAN_SENTENCES = "scan-sentences"
    """Cosine of every region with the words it attends to (as in SCAN), summed over regions."""


@dataclass(frozen=True)
class TextConfig:
    """The BERT encoder. The defaults are the first six layers of bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TextConfig":
        """Read a BERT `config.json`-like mapping; keys this model has no use for are ignored."""
        known = {f.name for f in dataclasses.fields(cls)}
        return cls(**{k: v for k, v in values.items() if k in known})


@dataclass(frozen=True)
class TeranConfig:
    """Everything needed to build the network. The defaults are the paper's model."""

    feature_dim: int = 2048
    embed_dim: int = 1024
    visual_layers: int = 4
    joint_layers: int = 2
    """Layers after the projection into the common space, in each pipeline."""
    shared_transformer: bool = False
    """Whether both pipelines use the same `joint_layers`."""
    num_attention_heads: int = 4
    feedforward_dim: int = 2048
    dropout: float = 0.1
    pooling: Pooling = Pooling.MRSW
    text: TextConfig = field(default_factory=TextConfig)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as `config.json` of a bundle holds it."""
        return {"model_type": "teran", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TeranConfig":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a key is unknown, or a value is not one of its kind.
        """
        values = {k: v for k, v in values.items() if k not in ("model_type", "architectures")}
        try:
            text = TextConfig(**values.pop("text", {}))
            pooling = Pooling(values.pop("pooling", Pooling.MRSW))
            return cls(text=text, pooling=pooling, **values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"not a TERAN config: {error}") from error

    def to_authors(self) -> dict[str, Any]:
        """The nested dict that `from_authors` reads, and the authors' code with it.

        What is no part of the architecture is as in their COCO configuration. Their code always
        takes bert-base-uncased for the rest of BERT's own.

        Raises:
            CheckpointError: their code has no such architecture.
        """
        for name, fixed in (("num_attention_heads", 4), ("feedforward_dim", 2048)):
            if getattr(self, name) != fixed:
                raise CheckpointError(
                    f"the authors' code can't load this model: its {name} is {getattr(self, name)},"
                    f" theirs is always {fixed}"
                )
        return {
            "dataset": {
                "name": "coco",
                "images-path": "data/coco/images",
                "data": "data",
                "restval": True,
                "pre-extracted-features": False,
            },
            "text-model": {
                "name": "bert",
                "pretrain": "bert-base-uncased",
                "word-dim": self.text.hidden_size,
                "extraction-hidden-layer": self.text.num_hidden_layers,
                "fine-tune": True,
                "pre-extracted": False,
                "layers": 0,
                "dropout": self.dropout,
            },
            "image-model": {
                "name": "bottomup",
                "pre-extracted-features-root": "data/coco/features_36",
                "transformer-layers": self.visual_layers,
                "dropout": self.dropout,
                "pos-encoding": "concat-and-process",
                "crop-size": 224,
                "fine-tune": False,
                "feat-dim": self.feature_dim,
                "norm": True,
            },
            "model": {
                "name": "teran",
                "embed-size": self.embed_dim,
                "text-aggregation": "first",
                "image-aggregation": "first",
                "layers": self.joint_layers,
                "exclude-stopwords": False,
                "shared-transformer": self.shared_transformer,
                "dropout": self.dropout,
            },
            "training": {
                "lr": 1e-5,
                "grad-clip": 2.0,
                "max-violation": True,
                "loss-type": "alignment",
                "alignment-mode": self.pooling.value,
                "measure": "dot",
                "margin": 0.2,
                "bs": 40,
                "scheduler": "steplr",
                "gamma": 0.1,
                "step-size": 20,
                "warmup": None,
                "warmup-period": 1000,
            },
        }

    @classmethod
    def from_authors(
        cls, config: Mapping[str, Any], text: TextConfig | Mapping[str, Any] | None = None
    ) -> "TeranConfig":
        """Translate the `config` dict of one of the authors' checkpoints.

        The number of heads (4) and the feed-forward width (2048) are fixed in the authors' code.

        Args:
            config: the nested dict (`text-model`, `image-model`, `model`, `training`).
            text: the BERT config; without it bert-base-uncased is assumed, as the authors do.

        Raises:
            CheckpointError: a section is missing, or asks for a variant that was never released.
        """
        try:
            text_model, image_model = config["text-model"], config["image-model"]
            model, training = config["model"], config["training"]
            for section, key, supported in (
                (text_model, "name", "bert"),
                (text_model, "layers", 0),
                (image_model, "name", "bottomup"),
                (image_model, "pos-encoding", "concat-and-process"),
                (model, "name", "teran"),
            ):
                if section.get(key, supported) != supported:
                    raise CheckpointError(
                        f"checkpoint config has {key}={section[key]!r}; "
                        f"only {supported!r} is supported"
                    )
            if text is None:
                text = TextConfig()
            elif not isinstance(text, TextConfig):
                to_dict = getattr(text, "to_dict", None)  # transformers' BertConfig
                text = TextConfig.from_dict(to_dict() if to_dict else text)
            text = dataclasses.replace(
                text, num_hidden_layers=int(text_model["extraction-hidden-layer"])
            )
            if text.hidden_size != text_model["word-dim"]:
                raise CheckpointError(
                    f"the checkpoint's word-dim is {text_model['word-dim']} but the text config's "
                    f"hidden_size is {text.hidden_size}; pass the matching text_config"
                )
            return cls(
                feature_dim=int(image_model["feat-dim"]),
                embed_dim=int(model["embed-size"]),
                visual_layers=int(image_model["transformer-layers"]),
                joint_layers=int(model["layers"]),
                shared_transformer=bool(model["shared-transformer"]),
                dropout=float(model["dropout"]),
                pooling=Pooling(training["alignment-mode"]),
                text=text,
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"not a TERAN checkpoint config: {error!r}") from error
