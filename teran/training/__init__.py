"""Training from image-sentence pairs alone (needs torch)."""

from teran.extras import needs

with needs("train"):
    from teran.training.config import TrainingConfig
    from teran.training.data import PairDataset
    from teran.training.loop import Trainer
    from teran.training.loss import triplet_loss

__all__ = ["PairDataset", "Trainer", "TrainingConfig", "triplet_loss"]
