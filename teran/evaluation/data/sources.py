"""Finds out in which form the regions of a data set lie."""

from pathlib import Path

from teran.errors import TeranInputError
from teran.evaluation.data.layout import FEATURES, LayoutSource
from teran.evaluation.data.packed import PACK_FILE, PackedSource
from teran.evaluation.data.regions import RegionSource
from teran.evaluation.data.sizes import read_sizes
from teran.evaluation.data.tsv import TsvSource

_USUAL = "features_36"
"""Taken before others, as in the paper."""


def open_regions(root: Path) -> RegionSource:
    """Open the regions of a data set: packed, in the authors' layout, or in tables.

    Args:
        root: of the data set, or one table.

    Raises:
        TeranInputError: there is none of these, or it is damaged.
    """
    if (root / PACK_FILE).is_file():
        return PackedSource(root)
    for folder in (root, root / _USUAL, *sorted(root.glob("features_*"))):
        if (folder / FEATURES).is_dir():
            return LayoutSource(folder, read_sizes(root))
    if root.suffix == ".tsv" or any(root.glob("*.tsv")):
        return TsvSource(root)
    raise TeranInputError(
        f"{root} holds no regions: neither {PACK_FILE} nor features_36/{FEATURES} nor a .tsv"
    )
