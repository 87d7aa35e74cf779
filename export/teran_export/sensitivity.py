"""Which layers to leave in float where a fully quantised encoder is not close enough."""

from collections.abc import Callable

from teran_export.gate import EncoderCheck

GROUPS = (
    "box_fusion",
    "attention.qkv",
    "attention/",
    "attention.out",
    "expand",
    "contract",
    "projection",
)
"""Parts of layer names: layers with the same job suffer alike from quantisation."""

Build = Callable[[tuple[str, ...]], EncoderCheck]
"""Builds an encoder with groups kept in float, and checks it."""


def keep_in_float(build: Build) -> tuple[str, ...]:
    """Choose as few groups as it takes, the one with the largest measured effect first.

    The effect of a group is how much closer the embeddings come when it alone is kept in float.

    Returns:
        The groups of the last build; all of them where even that does not pass.
    """
    effect = {group: build((group,)).mean_cosine for group in GROUPS}
    order = sorted(GROUPS, key=effect.__getitem__, reverse=True)
    for count in range(1, len(order) + 1):
        kept = tuple(order[:count])
        if build(kept).passes():
            break
    return kept
