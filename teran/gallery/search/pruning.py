"""Upper bounds that let a search skip most of the work and lose nothing.

With orthonormal columns B, fitted so that they hold most of the rows' energy, a vector r is its
prefix r1 = B'r and a rest of norm |r2|. Then, for a lane q and a stored prefix p that rounds r1,

    q.r  =  q1.r1 + q2.r2  <=  p.q1 + |q1| |r1 - p| + |q2| |r2|.

Summed like a score, with the maximum taken over these bounds, that bounds the score from above. An
item whose bound is below the score of the k-th best can't be among the best k. The norms are stored
with each row; prefixes are int8, and the rounding of the lanes is allowed for in the same way.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.gallery.search.kernels.base import DIM_STEP, Floats, Lanes, pad_dim, to_int8

NORM_SLACK = 1.02
"""Most a norm may be above 1 in a gallery."""
_ROUNDING = 2e-5
"""What fp32 sums may be off by, for a lane."""
_ENERGY = 0.9
_LARGEST_SHARE = 0.25
"""Of the dim, but at least one `DIM_STEP`: a longer prefix costs too much of a scan."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions that hold most of the rows' energy."""

    columns: Floats
    """(D, d), orthonormal; d is a multiple of `DIM_STEP`."""

    @classmethod
    def fit(cls, sample: Floats) -> "Basis | None":
        """Fit to rows (n, D); None where no short prefix holds enough of them to prune by."""
        dim = sample.shape[1]
        second_moment = sample.T.astype(np.float64) @ sample.astype(np.float64)
        energy, vectors = np.linalg.eigh(second_moment)
        energy, vectors = energy[::-1].clip(0), vectors[:, ::-1]
        held = np.cumsum(energy) / max(energy.sum(), 1e-30)
        longest = min(max(DIM_STEP, int(dim * _LARGEST_SHARE)), dim // 2)
        for length in range(DIM_STEP, longest + 1, DIM_STEP):
            if held[length - 1] >= _ENERGY:
                return cls(np.ascontiguousarray(vectors[:, :length], np.float32))
        return None

    @property
    def length(self) -> int:
        return self.columns.shape[1]

    def rows(self, values: Floats) -> dict[str, npt.NDArray[Any]]:
        """What is stored of rows (..., D): prefix, its scale, and the norms of the rest."""
        prefix = values @ self.columns
        quantized, scale = to_int8(prefix)
        rounded = (quantized.astype(np.float32) - 128) * scale[..., None]
        slack = np.linalg.norm(prefix - rounded, axis=-1) * np.float32(NORM_SLACK)
        rest = np.linalg.norm(values - prefix @ self.columns.T, axis=-1)
        return {
            "prefix": quantized,
            "prefix_scale": scale,
            "residual": rest.astype(np.float32),
            "slack": slack.astype(np.float32),
        }

    def lanes(self, lanes: Lanes) -> Lanes:
        """Lanes whose scores against prefixes are upper bounds."""
        prefix = lanes.values @ self.columns
        rest = np.linalg.norm(lanes.values - prefix @ self.columns.T, axis=-1)
        cut = replace(lanes, values=pad_dim(prefix), cache={})
        integers, scale = cut.quantized()
        error = np.linalg.norm(cut.values - integers * scale[:, None], axis=-1)
        slack = error * NORM_SLACK + _ROUNDING
        return replace(cut, residual=rest.astype(np.float32), slack=slack.astype(np.float32))
