"""The three graphs of a model: visual encoder, textual encoder, alignment.

Dynamic in batch, regions and words. `teran_export.onnx_graphs` writes them as ONNX.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from teran.model import Pooling, TeranModel, word_mask
from teran.model.alignment import align_masked, present
from teran.model.precision import in_precision

Arrays = dict[str, npt.NDArray[np.generic]]

FEATURE_TYPES = {"fp32": np.float32, "fp16": np.float16}
EMBEDDING_TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-4


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
class Fixed:
    """An axis whose length the model's config says."""

    attribute: str


Axis = str | int | Fixed
"""A dynamic axis by its name, or a fixed one."""
Sample = Callable[["Graph", np.random.Generator, Any, Sequence[int]], Arrays]


@dataclass(frozen=True)
class Graph:
    """One graph: its name (also the Triton model's), tensors, dynamic axes and tolerance.

    Graphs of one name are equal: they differ at most in how their features come.
    """

    name: str
    inputs: Mapping[str, tuple[Axis, ...]] = field(compare=False)
    """Each input's shape."""
    outputs: tuple[str, ...] = field(compare=False)
    module: Callable[[Any], nn.Module] = field(compare=False)
    """What computes it, of a model."""
    sample: Sample = field(compare=False)
    """Random valid inputs, given the graph, the model's config, and sizes of the axes in order."""
    tolerance: float = field(compare=False)
    """Largest difference from PyTorch, as part of the largest value where that is above 1."""
    shapes: tuple[tuple[int, ...], ...] = field(compare=False)
    """Sizes of the axes to check with. The first is traced; none of the others repeats it."""
    multiples: Mapping[str, int] = field(default_factory=dict, compare=False)
    """Axes whose lengths are multiples of something."""
    is_transformer: bool = field(default=True, compare=False)
    """Rather than a convolutional network."""
    kept_in_float: tuple[str, ...] = field(default=(), compare=False)
    """Parts of layer names that are never quantised."""
    feature_precision: str = field(default="fp32", compare=False)
    """How region features come: fp32 or fp16."""

    @property
    def axes(self) -> tuple[str, ...]:
        """The dynamic ones."""
        every = (axis for axes in self.inputs.values() for axis in axes if isinstance(axis, str))
        return tuple(dict.fromkeys(every))

    def module_in(self, model: nn.Module, precision: str) -> nn.Module:
        """What computes it, in a precision; see `teran.model.precision`.

        Raises:
            ExportError: a weight does not fit the precision.
        """
        return in_precision(self.module(model).eval(), precision)

    def shape(self, name: str, config: Any, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of an input, given sizes of the dynamic axes; -1 for those without."""
        return tuple(_length(axis, config, sizes) for axis in self.inputs[name])

    def with_features(self, precision: str) -> "Graph":
        """This graph with region features in "fp32" or "fp16", where it takes any."""
        return (
            replace(self, feature_precision=precision) if "region_features" in self.inputs else self
        )

    def path(self, directory: Path) -> Path:
        return directory / f"{self.name}.onnx"


def _length(axis: Axis, config: Any, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, str):
        return sizes.get(axis, -1)
    return axis if isinstance(axis, int) else int(getattr(config, axis.attribute))


def _images(graph: Graph, random: np.random.Generator, config: Any, sizes: Sequence[int]) -> Arrays:
    """Features like those of a real detector: never negative, a third zero, a few reach 30."""
    mask = _present(random, *sizes)
    features = random.exponential(1.1, (*sizes, config.feature_dim))
    features *= random.random(features.shape) > 1 / 3
    corner = random.random((*sizes, 2)) * 0.6
    boxes = np.concatenate([corner, corner + 0.05 + 0.35 * random.random(corner.shape)], -1)
    kind = FEATURE_TYPES[graph.feature_precision]
    return {
        "region_features": (features * mask[..., None]).astype(kind),
        "boxes": (boxes * mask[..., None]).astype(np.float32),
        "region_mask": mask,
    }


def _captions(
    graph: Graph,  # noqa: ARG001
    random: np.random.Generator,
    config: Any,
    sizes: Sequence[int],
) -> Arrays:
    mask = _present(random, *sizes)
    ids = random.integers(0, config.text.vocab_size, tuple(sizes)) * mask
    return {
        "input_ids": ids.astype(np.int64),
        "attention_mask": mask.astype(np.int64),
        "word_mask": word_mask(torch.from_numpy(mask)).numpy(),
    }


def _present(random: np.random.Generator, batch: int, length: int) -> npt.NDArray[np.bool_]:
    """Which rows there are; of the first item all."""
    counts = random.integers(min(2, length), length + 1, size=batch)
    counts[0] = length
    mask: npt.NDArray[np.bool_] = np.arange(length) < counts[:, None]
    return mask


def _embeddings(
    graph: Graph,  # noqa: ARG001
    random: np.random.Generator,
    config: Any,
    sizes: Sequence[int],
) -> Arrays:
    images, regions, captions, words = sizes
    return {
        "region_embeddings": _unit_rows(random, images, regions, config.embed_dim),
        "word_embeddings": _unit_rows(random, captions, words, config.embed_dim),
    }


def _unit_rows(
    random: np.random.Generator, count: int, length: int, dim: int
) -> npt.NDArray[np.float32]:
    rows = random.standard_normal((count, length, dim))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    rows[-1, (length + 1) // 2 :] = 0.0
    return rows.astype(np.float32)


VISUAL_ENCODER = Graph(
    "visual_encoder",
    {
        "region_features": ("batch", "regions", Fixed("feature_dim")),
        "boxes": ("batch", "regions", 4),
        "region_mask": ("batch", "regions"),
    },
    ("region_embeddings",),
    _Visual,
    _images,
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
    _captions,
    EMBEDDING_TOLERANCE,
    ((2, 7), (1, 16), (5, 32), (1, 64)),
)
ALIGNMENT = Graph(
    "alignment",
    {
        "region_embeddings": ("images", "regions", Fixed("embed_dim")),
        "word_embeddings": ("captions", "words", Fixed("embed_dim")),
    },
    ("scores", "region_word_similarity"),
    lambda model: _Alignment(model.config.pooling),
    _embeddings,
    SCORE_TOLERANCE,
    ((2, 5, 3, 7), (1, 36, 1, 16), (4, 40, 1, 9), (1, 1, 6, 32)),
)
GRAPHS = (VISUAL_ENCODER, TEXTUAL_ENCODER, ALIGNMENT)


def random_inputs(graph: Graph, config: Any, sizes: Sequence[int], seed: int = 0) -> Arrays:
    """Random valid inputs, given the sizes of a graph's axes in order."""
    return graph.sample(graph, np.random.default_rng(seed), config, sizes)


def export_program(
    graph: Graph, model: nn.Module, precision: str, device: torch.device
) -> torch.export.ExportedProgram:
    """One part of a model on `device` as an exported program with dynamic axes."""
    example, dynamic = traced_example(graph, model, device)
    module = graph.module_in(model, precision)
    if device.type != "cpu":
        module = copy.deepcopy(module).to(device)  # the model stays where it is
    return torch.export.export(module, example, dynamic_shapes=dynamic)


def traced_example(
    graph: Graph, model: Any, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs to trace with, and which of their axes are dynamic."""
    inputs = random_inputs(graph, model.config, graph.shapes[0])
    longest = {"words": model.config.text.max_position_embeddings} if "words" in graph.axes else {}
    dims: dict[str, Any] = {
        axis: torch.export.Dim(axis, min=1, max=longest.get(axis, 1 << 16)) for axis in graph.axes
    }
    for axis, factor in graph.multiples.items():
        dims[axis] = factor * torch.export.Dim(f"{axis}_by_{factor}", min=1, max=1 << 8)
    return (
        tuple(torch.from_numpy(value).to(device) for value in inputs.values()),
        tuple(
            {i: dims[axis] for i, axis in enumerate(axes) if isinstance(axis, str)}
            for axes in graph.inputs.values()
        ),
    )
