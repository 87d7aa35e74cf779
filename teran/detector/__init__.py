"""From a photo to an image's regions: bottom-up attention, as the original Caffe code does it."""

from typing import TYPE_CHECKING, Any

from teran.detector.config import DetectorConfig
from teran.detector.regions import Regions

if TYPE_CHECKING:
    from teran.detector.detector import RegionDetector

__all__ = ["DetectorConfig", "RegionDetector", "Regions"]


def __getattr__(name: str) -> Any:
    """Import on first use what needs torch: what is between the networks does without."""
    if name != "RegionDetector":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from teran.detector.detector import RegionDetector

    return RegionDetector
