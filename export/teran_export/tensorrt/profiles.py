"""Optimization profiles chosen from the traffic: one item as fast as can be, and full batches.

A profile gives the smallest, the usual and the largest shape of every input; TensorRT picks kernels
for the usual one. Words are those of real captions (the 16-piece bucket holds 87 % of COCO's),
regions the 36 of bottom-up attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from teran.contract import USUAL_REGIONS
from teran.model import TeranConfig
from teran_export.graphs import ALIGNMENT, TEXTUAL_ENCODER, VISUAL_ENCODER, Graph

Shape = tuple[int, ...]
MIN_WORDS, USUAL_WORDS = 8, 16
GRAPH_WORDS = (16, 32)
"""Word buckets of single captions that get a CUDA graph."""
_ALIGNMENTS = (
    {"images": (1, 64, 1024), "captions": (1, 1, 4), "words": (1, USUAL_WORDS, 96)},
    {"images": (1, 1, 4), "captions": (1, 64, 1024), "words": (1, USUAL_WORDS, 96)},
    {"images": (1, 64, 64), "captions": (1, 64, 64), "words": (1, USUAL_WORDS, 96)},
)
"""Many images for few captions, the reverse, and some of both: what the client sends. Every largest
shape keeps to `MAX_CELLS`, as memory for it is taken beforehand."""


@dataclass(frozen=True)
class Range:
    """The shapes one input may have."""

    smallest: Shape
    usual: Shape
    largest: Shape


Profile = Mapping[str, Range]


def profiles(
    graph: Graph, config: TeranConfig, largest_batch: int, max_words: int, max_regions: int
) -> list[Profile]:
    """Two profiles of an encoder, latency and throughput; three of the alignment.

    Args:
        graph: the part.
        config: the model's.
        largest_batch: the encoder's published batch limit.
        max_words: the longest caption, in word pieces.
        max_regions: the most regions of an image.
    """
    if graph == ALIGNMENT:
        regions = (1, USUAL_REGIONS, max_regions)
        return [_profile(graph, config, {**axes, "regions": regions}) for axes in _ALIGNMENTS]
    rows = (
        {"words": (min(MIN_WORDS, max_words), min(USUAL_WORDS, max_words), max_words)}
        if graph == TEXTUAL_ENCODER
        else {"regions": (1, min(USUAL_REGIONS, max_regions), max_regions)}
    )
    latency = _profile(graph, config, {"batch": (1, 1, 1), **rows})
    if largest_batch == 1:
        return [latency]
    throughput = {"batch": (2, largest_batch, largest_batch), **rows}
    return [latency, _profile(graph, config, throughput)]


def fixed_dims(graph: Graph, config: TeranConfig) -> dict[str, Shape]:
    """What follows an input's dynamic axes in its shape."""
    if graph == ALIGNMENT:
        return dict.fromkeys(graph.inputs, (config.embed_dim,))
    if graph == VISUAL_ENCODER:
        return {"region_features": (config.feature_dim,), "boxes": (4,), "region_mask": ()}
    return dict.fromkeys(graph.inputs, ())


def _profile(graph: Graph, config: TeranConfig, axes: Mapping[str, Shape]) -> Profile:
    fixed = fixed_dims(graph, config)

    def shape(name: str, which: int) -> Shape:
        return (*(axes[axis][which] for axis in graph.inputs[name]), *fixed[name])

    return {name: Range(*(shape(name, which) for which in range(3))) for name in graph.inputs}
