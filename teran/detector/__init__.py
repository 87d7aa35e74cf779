"""From a photo to an image's regions: bottom-up attention, as the original Caffe code does it."""

from teran.detector.config import DetectorConfig
from teran.detector.detector import RegionDetector, Regions

__all__ = ["DetectorConfig", "RegionDetector", "Regions"]
