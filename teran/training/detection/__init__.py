"""Training a region detector from boxes, classes and attributes (needs torch)."""

from teran.extras import needs

with needs("train"):
    from teran.training.detection.loop import DetectorTrainer, DetectorTrainingConfig
    from teran.training.detection.targets import LabelledPhoto

__all__ = ["DetectorTrainer", "DetectorTrainingConfig", "LabelledPhoto"]
