"""The three graphs of a model: visual encoder, textual encoder, alignment.

Dynamic in batch, regions and words. `teran_export.onnx_graphs` writes them as ONNX.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teran.model import Pooling, TeranConfig, TeranModel, word_mask
from teran.model.alignment import align_masked, present

Arrays = dict[str, npt.NDArray[np.generic]]

FEATURE_TYPES = {"fp32": np.float32, "fp16": np.float16}
EMBEDDING_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3


class _Visual(nn.Module):
    def __init__(self, model: TeranModel) -> None:
        super().__init__()
        self.encoder = model.visual_encoder

    def forward(self, region_features: Tensor, boxes: Tensor, region_mask: Tensor) -> Tensor:
        # Features may come in fp16, to be half as long on the way.
        result: Tensor = self.encoder(region_features.float(), boxes, region_mask)
        return result


class _Textual(nn.Module):
    def __init__(self, model: TeranModel) -> None:
        super().__init__()
        self.encoder = model.textual_encoder
        self.vocab_size = model.config.text.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, word_mask: Tensor) -> Tensor:
        # A look-up outside the table is undefined in most engines. Not clamped: TensorRT's Clip
        # takes no integers.
        known = (input_ids >= 0) & (input_ids < self.vocab_size)
        ids = torch.where(known, input_ids, 0)
        result: Tensor = self.encoder(ids, attention_mask, word_mask)
        return result


class _Alignment(nn.Module):
    """The matrix stays in the order it is computed in, [N, R, M, W]: no transposed copy."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, region_embeddings: Tensor, word_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        region_mask, word_mask = present(region_embeddings), present(word_embeddings)
        return align_masked(
            region_embeddings, word_embeddings, region_mask, word_mask, self.pooling
        )


@dataclass(frozen=True)
class Graph:
    """One graph: its name (also the Triton model's), tensors, dynamic axes and tolerance.

    Graphs of one name are equal: they differ at most in how their features come.
    """

    name: str
    inputs: Mapping[str, tuple[str, ...]] = field(compare=False)
    """Each input's dynamic axes by name; a leading run, the rest of the shape is fixed."""
    outputs: tuple[str, ...] = field(compare=False)
    module: Callable[[TeranModel], nn.Module] = field(compare=False)
    tolerance: float = field(compare=False)
    shapes: tuple[tuple[int, ...], ...] = field(compare=False)
    """Sizes of the axes to check with. The first is traced; none of the others repeats it."""
    feature_precision: str = field(default="fp32", compare=False)
    """How region features come: fp32 or fp16."""

    @property
    def axes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(axis for axes in self.inputs.values() for axis in axes))

    def with_features(self, precision: str) -> "Graph":
        """This graph with region features in "fp32" or "fp16", where it takes any."""
        return (
            replace(self, feature_precision=precision) if "region_features" in self.inputs else self
        )

    def path(self, directory: Path) -> Path:
        return directory / f"{self.name}.onnx"


VISUAL_ENCODER = Graph(
    "visual_encoder",
    {
        "region_features": ("batch", "regions"),
        "boxes": ("batch", "regions"),
        "region_mask": ("batch", "regions"),
    },
    ("region_embeddings",),
    _Visual,
    EMBEDDING_TOLERANCE,
    ((2, 5), (1, 36), (3, 1), (2, 50)),
)
TEXTUAL_ENCODER = Graph(
    "textual_encoder",
    {
        "input_ids": ("batch", "words"),
        "attention_mask": ("batch", "words"),
        "word_mask": ("batch", "words"),
    },
    ("word_embeddings",),
    _Textual,
    EMBEDDING_TOLERANCE,
    ((2, 7), (1, 16), (5, 32), (1, 64)),
)
ALIGNMENT = Graph(
    "alignment",
    {"region_embeddings": ("images", "regions"), "word_embeddings": ("captions", "words")},
    ("scores", "region_word_similarity"),
    lambda model: _Alignment(model.config.pooling),
    SCORE_TOLERANCE,
    ((2, 5, 3, 7), (1, 36, 1, 16), (4, 40, 1, 9), (1, 1, 6, 32)),
)
GRAPHS = (VISUAL_ENCODER, TEXTUAL_ENCODER, ALIGNMENT)


def random_inputs(
    graph: Graph, config: TeranConfig, sizes: tuple[int, ...], seed: int = 0
) -> Arrays:
    """Random valid inputs: padded rows, features like those of a real detector.

    Bottom-up-attention features are never negative, a third of them is zero, and a few reach 30.
    """
    random = np.random.default_rng(seed)
    if graph == ALIGNMENT:
        images, regions, captions, words = sizes
        return {
            "region_embeddings": _unit_rows(random, images, regions, config.embed_dim),
            "word_embeddings": _unit_rows(random, captions, words, config.embed_dim),
        }
    batch, length = sizes
    counts = random.integers(min(2, length), length + 1, size=batch)
    counts[0] = length
    mask = np.arange(length) < counts[:, None]
    if graph == VISUAL_ENCODER:
        features = random.exponential(1.1, (batch, length, config.feature_dim))
        features *= random.random(features.shape) > 1 / 3
        corner = random.random((batch, length, 2)) * 0.6
        boxes = np.concatenate([corner, corner + 0.05 + 0.35 * random.random(corner.shape)], -1)
        return {
            "region_features": (features * mask[..., None]).astype(
                FEATURE_TYPES[graph.feature_precision]
            ),
            "boxes": (boxes * mask[..., None]).astype(np.float32),
            "region_mask": mask,
        }
    ids = random.integers(0, config.text.vocab_size, (batch, length)) * mask
    return {
        "input_ids": ids.astype(np.int64),
        "attention_mask": mask.astype(np.int64),
        "word_mask": word_mask(torch.from_numpy(mask)).numpy(),
    }


def _unit_rows(
    random: np.random.Generator, count: int, length: int, dim: int
) -> npt.NDArray[np.float32]:
    rows = random.standard_normal((count, length, dim))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    rows[-1, (length + 1) // 2 :] = 0.0
    return rows.astype(np.float32)


def export_program(
    graph: Graph, model: TeranModel, device: torch.device
) -> torch.export.ExportedProgram:
    """One part of a model on `device` as an exported program with dynamic axes."""
    example, dynamic = traced_example(graph, model, device)
    return torch.export.export(
        graph.module(model).eval().to(device), example, dynamic_shapes=dynamic
    )


def traced_example(
    graph: Graph, model: TeranModel, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[dict[int, torch.export.Dim], ...]]:
    """Inputs to trace with, and which of their axes are dynamic."""
    inputs = random_inputs(graph, model.config, graph.shapes[0])
    longest = {"words": model.config.text.max_position_embeddings} if "words" in graph.axes else {}
    dims = {
        axis: torch.export.Dim(axis, min=1, max=longest.get(axis, 1 << 16)) for axis in graph.axes
    }
    return (
        tuple(torch.from_numpy(value).to(device) for value in inputs.values()),
        tuple({i: dims[axis] for i, axis in enumerate(axes)} for axes in graph.inputs.values()),
    )
