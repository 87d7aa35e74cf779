"""Several processes that train one model on parts of every batch, as `torchrun` starts them.

Each encodes its own part. The embeddings of all are put together before the alignment, so that
every image is held against the sentences of the whole batch: the processes learn what one would
from the batch in one piece.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather


@dataclass(frozen=True)
class World:
    """The processes, and which of them this is."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "World":
        """Join the processes that `torchrun` has started, or be alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), size) if size > 1 else cls()

    def leave(self) -> None:
        """End what `join` began."""
        if self.size > 1:
            distributed.destroy_process_group()

    def part(self, items: Sequence[Any]) -> list[Any]:
        """This process's share of items: in the order of ranks they are all of them again."""
        return list(items[self._bounds(len(items), self.rank)])

    def gather(self, rows: Tensor, items: int) -> Tensor:
        """Put the shares of all processes together; gradients find their way back.

        Args:
            rows: (b, L, E) of this process's share. Zero rows are none, so L may differ.
            items: how many all have.

        Returns:
            (items, the largest L, E).
        """
        if self.size == 1:
            return rows
        counts = [
            (bounds := self._bounds(items, rank)).stop - bounds.start for rank in range(self.size)
        ]
        length = torch.tensor(rows.shape[1], device=rows.device)
        distributed.all_reduce(length, distributed.ReduceOp.MAX)
        padding = (0, 0, 0, int(length) - rows.shape[1], 0, max(counts) - len(rows))
        parts = all_gather(nn.functional.pad(rows, padding).contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def share_weights(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)

    def average_gradients(self, model: nn.Module) -> None:
        """Add up what every process found out, where each has gone back through all its loss.

        Each process computes the whole loss, and `gather` hands every share the gradients of all
        of them: that is as many times too much as there are processes.
        """
        if self.size == 1:
            return
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        flat = torch.cat([one.flatten() for one in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(
            gradients, flat.split([one.numel() for one in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def collect(self, value: Any) -> list[Any]:
        """What every process says, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def _bounds(self, items: int, rank: int) -> slice:
        return slice(rank * items // self.size, (rank + 1) * items // self.size)
