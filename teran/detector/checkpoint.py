"""Reads the public weights of bottom-up attention, in both layouts, and runs no code in them.

MILVLG's (bottom-up-attention.pytorch) is Caffe's own order: anchors by shape, then size; logits of
background and foreground; the background class first. That of `unc-nlp/frcnn-vg-finetuned` has one
logit for an anchor, anchors by size, then shape, and the background last; its weights came from
Caffe, too, so they get Caffe's anchors.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from teran.detector.config import ANCHORS, BLOCKS, DetectorConfig
from teran.errors import CheckpointError

_UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    KeyError,
    SafetensorError,
)
_OURS = {
    "backbone.": "proposal_network.backbone.",
    "proposal_generator.rpn_head.": "proposal_network.rpn_head.",
    "roi_heads.res5.": "region_network.res5.",
    "roi_heads.box_predictor.cls_score.": "region_network.cls_score.",
}
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_SIZES, _SHAPES = 4, 3
_CAFFES_ORDER = [size * _SHAPES + shape for shape in range(_SHAPES) for size in range(_SIZES)]
"""Where Caffe's anchors are among those that go by size first."""


def read(
    path: str | Path, config: DetectorConfig | None = None
) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """Read a checkpoint: its architecture, unless it is given, and its weights by our names.

    Raises:
        CheckpointError: the file is missing, unsafe, truncated or of another model.
    """
    state = _load(Path(path))
    try:
        return translate(state, config)
    except KeyError as error:
        raise CheckpointError(f"{path} is not a detector: it has no tensor {error}") from error


def _load(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} can't be loaded safely: {reason}") from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a detector: it holds a {type(content).__name__}")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def translate(
    state: Mapping[str, Tensor], config: DetectorConfig | None = None
) -> tuple[DetectorConfig, dict[str, Tensor]]:
    """Rename tensors and put them into Caffe's order; what regions do without is left out.

    Raises:
        KeyError: a tensor is missing.
        CheckpointError: one has another shape than the config says.
    """
    config = config or _config(state)
    result = {
        ours + name.removeprefix(theirs): value.float()
        for name, value in state.items()
        for theirs, ours in _OURS.items()
        if name.startswith(theirs) and not name.endswith("num_batches_tracked")
    }
    logits = "proposal_network.rpn_head.objectness_logits"
    if len(result[f"{logits}.bias"]) == ANCHORS:
        for kind in ("weight", "bias"):
            foreground = result[f"{logits}.{kind}"][_CAFFES_ORDER]
            result[f"{logits}.{kind}"] = torch.cat([torch.zeros_like(foreground), foreground])
            deltas = f"proposal_network.rpn_head.anchor_deltas.{kind}"
            result[deltas] = result[deltas].unflatten(0, (ANCHORS, 4))[_CAFFES_ORDER].flatten(0, 1)
            classes = f"region_network.cls_score.{kind}"
            result[classes] = result[classes].roll(1, dims=0)
    elif _ANCHORS in state:
        result["anchors"] = state[_ANCHORS].float()
    return config, result


def _config(state: Mapping[str, Tensor]) -> DetectorConfig:
    """The architecture, from the tensors' shapes."""
    first = state["backbone.res2.0.conv1.weight"]
    count = len({name.split(".")[2] for name in state if name.startswith("backbone.res4.")})
    depths = [depth for depth, blocks in BLOCKS.items() if blocks[2] == count]
    if not depths:
        raise CheckpointError(f"a detector's res4 has 6 or 23 blocks; the checkpoint's has {count}")
    attributes = [
        len(state[name]) - 1
        for part in ("attr_score", "attr_linear2")
        if (name := f"roi_heads.box_predictor.{part}.bias") in state
    ]
    return DetectorConfig(
        depth=depths[0],
        stem_channels=first.shape[1],
        res2_channels=len(state["backbone.res2.0.conv3.weight"]),
        width_per_group=len(first),
        rpn_channels=len(state["proposal_generator.rpn_head.conv.bias"]),
        classes=len(state["roi_heads.box_predictor.cls_score.bias"]) - 1,
        **({"attributes": attributes[0]} if attributes else {}),
    )
