"""The typed settings of a training run. The defaults are the authors' COCO settings."""

from dataclasses import dataclass
from typing import Literal, get_args

from teran.errors import TeranInputError

Optimizer = Literal["adam", "adamw"]
Precision = Literal["fp32", "bf16", "fp16"]
OPTIMIZERS, PRECISIONS = get_args(Optimizer), get_args(Precision)


@dataclass(frozen=True)
class TrainingConfig:
    """How to train; what to train is the model's config."""

    epochs: int = 30
    batch_size: int = 40
    learning_rate: float = 1e-5
    optimizer: Optimizer = "adam"
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
    precision: Precision = "fp32"
    """Of the matrix products; weights and loss stay in fp32. fp16 needs a GPU."""
    fine_tune_text: bool = True
    """Whether BERT learns too, or stays as it is."""
    all_captions: bool = False
    """Whether an epoch visits every caption, as the authors' do, or every image with one of its."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can be made of.

        Raises:
            TeranInputError: a value is out of range; the message names it.
        """
        for name in ("epochs", "batch_size", "step_size", "accumulate"):
            if getattr(self, name) < 1:
                raise TeranInputError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "gamma"):
            if not getattr(self, name) > 0:
                raise TeranInputError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name, known in (("optimizer", OPTIMIZERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise TeranInputError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}"
                )
