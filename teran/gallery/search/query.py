"""What is searched for, and what is found."""

from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt

from teran.gallery.search.kernels.base import Floats

_CANDIDATES = 4
_FEWEST_CANDIDATES = 64


@dataclass(frozen=True, eq=False)
class Query:
    """One search.

    Attributes:
        rows: (W, D) vectors, absent ones left out.
        k: how many items to find.
        allowed: per chunk, which slots may be found; None for all that hold an item.
        min_score_per_word: items below it are left out.
        exact: whether the result must be proven exact, whatever it costs.
    """

    rows: Floats
    k: int = 10
    allowed: list[npt.NDArray[np.bool_]] | None = None
    min_score_per_word: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Hit:
    """An item that was found: its key, and its scores in fp32."""

    point: UUID
    score: float
    score_per_word: float


@dataclass(frozen=True)
class SearchResult:
    """The result of one search, the best item first."""

    hits: list[Hit]
    items: int
    """How many items could have been found."""
    scored: int
    """How many of them were scored, rather than only bounded."""
    exact: bool
    """Whether the result is proven to be the exhaustive one."""

    @property
    def pruned(self) -> float:
        """Share of the items whose score was never computed."""
        return 1 - self.scored / self.items if self.items else 0.0


def candidate_count(k: int) -> int:
    """How many of the best items by a coarse score are scored again in fp32, to find the best k."""
    return max(_CANDIDATES * k, _FEWEST_CANDIDATES)
