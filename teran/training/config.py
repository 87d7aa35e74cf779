"""The typed settings of a training run. The defaults are the authors' COCO settings."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; what to train is the model's config."""

    epochs: int = 30
    batch_size: int = 40
    learning_rate: float = 1e-5
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0
    step_size: int = 20
    """Epochs after which the learning rate is multiplied by `gamma`."""
    gamma: float = 0.1
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from zero."""
    margin: float = 0.2
    hardest_negative: bool = True
    """Whether only the hardest negative of each pair counts, or all of them."""
    all_negatives_epochs: int = 0
    """Epochs at the start in which all negatives count: a model from scratch needs a few."""
    gradient_clip: float = 2.0
    """Largest L2 norm of the gradient; 0 leaves it as it is."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step; negatives are those of one batch."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the matrix products; weights and loss stay in fp32. fp16 needs a GPU."""
    fine_tune_text: bool = True
    """Whether BERT learns too, or stays as it is."""
    seed: int = 0
