"""The typed description of a region detector. The defaults are the original's."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teran.errors import CheckpointError

ANCHORS = 12
"""At each cell of the feature map."""
POOLED = 14
"""Cells of a region, each way."""
STRIDE = 16
"""Pixels of a cell of the feature map."""
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Blocks of res2 to res5, by depth."""


@dataclass(frozen=True)
class DetectorConfig:
    """Faster R-CNN on ResNet-C4, trained on Visual Genome."""

    depth: int = 101
    """Of the ResNet: 50 or 101."""
    stem_channels: int = 64
    res2_channels: int = 256
    width_per_group: int = 64
    """Channels of res2's 3x3 convolutions."""
    rpn_channels: int = 512
    classes: int = 1600
    """Without the background."""
    attributes: int = 400
    """Of an object; none is used here."""
    min_side: int = 600
    """Pixels a photo's shorter side is brought to..."""
    max_side: int = 1000
    """... unless the longer one would have more than these."""
    proposals_before_nms: int = 6000
    proposals: int = 300
    min_regions: int = 36
    max_regions: int = 36

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise CheckpointError(f"a detector has a depth of 50 or 101, not {self.depth}")
        if not 1 <= self.min_regions <= self.max_regions <= self.proposals:
            raise CheckpointError(
                f"{self.min_regions} to {self.max_regions} regions can't be chosen from "
                f"{self.proposals} proposals"
            )

    @property
    def blocks(self) -> tuple[int, int, int, int]:
        """Of res2 to res5."""
        return BLOCKS[self.depth]

    @property
    def res4_channels(self) -> int:
        return 4 * self.res2_channels

    @property
    def feature_dim(self) -> int:
        """Of a region."""
        return 8 * self.res2_channels

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"model_type": "bottom-up-attention", **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DetectorConfig":
        """Read what `to_dict` wrote.

        Raises:
            CheckpointError: a key is unknown.
        """
        values = {key: value for key, value in values.items() if key != "model_type"}
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(f"not a detector's config: {error}") from error
