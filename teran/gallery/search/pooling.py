"""How a pooling becomes maxima over rows and lanes, with the clamps of the authors' evaluation.

Their evaluation pads images to 36 regions and captions beyond any real one, and masks before it
takes maxima. So a word's best region counts as at least 0 where the image has fewer than 36
regions, and a region's best word always does (see docs/architecture.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from teran.contract import USUAL_REGIONS
from teran.errors import GalleryError
from teran.gallery.search.kernels.base import Floats, Lanes, Sides


class Kind(StrEnum):
    """What a gallery holds."""

    IMAGES = "images"
    """Searched by sentences."""
    SENTENCES = "sentences"
    """Searched by images."""


@dataclass(frozen=True)
class Pooling:
    """One pooling for one kind of gallery."""

    name: str
    kind: Kind

    def __post_init__(self) -> None:
        if self.name not in ("MrSw", "MwSr", "symm"):
            raise GalleryError(
                f"galleries are searched by MrSw, MwSr or symm; the model's pooling is {self.name}"
            )

    @property
    def _best_region(self) -> bool:
        return self.name in ("MrSw", "symm")

    @property
    def _best_word(self) -> bool:
        return self.name in ("MwSr", "symm")

    def lanes(self, queries: Sequence[Floats]) -> Lanes:
        """Queries (W, D) each, ready for a kernel."""
        images = self.kind is Kind.IMAGES
        best_row = self._best_region if images else self._best_word
        best_lane = self._best_word if images else self._best_region
        sides = Sides(Sides.BEST_ROW * best_row | Sides.BEST_LANE * best_lane)
        clamp = [images or len(query) < USUAL_REGIONS for query in queries]
        return Lanes.of(queries, sides, clamp)

    def clamp_rows(self, length: int) -> bool:
        """Whether the best of an item's `length` rows counts as at least 0."""
        return self.kind is Kind.SENTENCES or length < USUAL_REGIONS
