"""Optimization profiles chosen from the traffic: one item as fast as can be, and full batches.

A profile gives the smallest, the usual and the largest shape of every input; TensorRT picks kernels
for the usual one. Words are those of real captions (the 16-piece bucket holds 87 % of COCO's),
regions the 36 of bottom-up attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from teran.contract import USUAL_REGIONS
from teran.detector import DetectorConfig
from teran.detector.config import STRIDE
from teran.model import TeranConfig
from teran_export.detector_graphs import PROPOSAL_NETWORK, SIDE_STEP
from teran_export.graphs import ALIGNMENT, TEXTUAL_ENCODER, Graph

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


def detector_profiles(graph: Graph, config: DetectorConfig, largest_batch: int) -> list[Profile]:
    """Two profiles of one of a detector's networks, one photo and several."""
    largest = -(-max(config.min_side, config.max_side) // SIDE_STEP) * SIDE_STEP
    short = -(-config.min_side // SIDE_STEP) * SIDE_STEP
    side = (SIDE_STEP, min(max(short, SIDE_STEP), largest), largest)
    if graph == PROPOSAL_NETWORK:
        axes: dict[str, Shape] = {"height": side, "width": side}
    else:
        cells = (side[0] // STRIDE, side[1] // STRIDE, side[2] // STRIDE)
        count = (1, config.proposals, config.proposals)
        axes = {"map_height": cells, "map_width": cells, "proposals": count}
    latency = _profile(graph, config, {"batch": (1, 1, 1), **axes})
    if largest_batch == 1:
        return [latency]
    batch = (2, largest_batch, largest_batch)
    return [latency, _profile(graph, config, {"batch": batch, **axes})]


def _profile(
    graph: Graph, config: TeranConfig | DetectorConfig, axes: Mapping[str, Shape]
) -> Profile:
    def shape(name: str, which: int) -> Shape:
        return graph.shape(name, config, {axis: sizes[which] for axis, sizes in axes.items()})

    return {name: Range(*(shape(name, which) for which in range(3))) for name in graph.inputs}
