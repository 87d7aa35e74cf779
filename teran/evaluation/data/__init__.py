"""Data sets as they lie on disks: captions, splits, and the regions of every image."""

from teran.evaluation.data.captions import Split, read_split, root_of
from teran.evaluation.data.regions import Regions, RegionSource
from teran.evaluation.data.sources import open_regions

__all__ = ["RegionSource", "Regions", "Split", "open_regions", "read_split", "root_of"]
