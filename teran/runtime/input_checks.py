"""What an engine's inputs must be like, by its config, so that it neither chokes nor errs on them.

Parameters, in JSON:

    shapes      {input: [axis, ...]}, behind the batch where there is one; null is not looked at
    axes        {axis: [least, most, step]}, what an axis's length must lie in and divide by
    values      {input: [least, most]}
    max_cells   most row-by-row products one request may ask for, where there is no batch limit
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any, NamedTuple

from teran.errors import TeranInputError


class Lengths(NamedTuple):
    """Of an axis."""

    least: int
    most: int
    step: int

    def check(self, name: str, axis: str, length: int) -> None:
        """Refuse a length.

        Raises:
            TeranInputError: it is none of them.
        """
        if length > self.most:
            raise TeranInputError(f"{name} has {length} {axis}; at most {self.most} are accepted")
        if length < self.least or length % self.step:
            raise TeranInputError(
                f"{name} has {length} {axis}; at least {self.least} are needed, and multiples of "
                f"{self.step}"
            )


class InputChecks:
    """The checks of one model."""

    def __init__(self, parameters: Mapping[str, str], *, batched: bool) -> None:
        """Read a config's parameters."""
        self._first = int(batched)
        self._shapes = json.loads(parameters.get("shapes", "{}"))
        axes = json.loads(parameters.get("axes", "{}"))
        self._axes = {axis: Lengths(*lengths) for axis, lengths in axes.items()}
        self._values = json.loads(parameters.get("values", "{}"))
        self._most_cells = int(parameters.get("max_cells", 0))

    def check(self, inputs: Mapping[str, Any], is_finite: Callable[[Any], bool]) -> None:
        """Check one request.

        Args:
            inputs: by name: arrays, or tensors.
            is_finite: whether no value of one is NaN or infinite.

        Raises:
            TeranInputError: names the input and what is wrong with it.
        """
        lengths: dict[str, dict[str, int]] = {}
        for name, value in inputs.items():
            if prod(value.shape) == 0:
                raise TeranInputError(f"{name} has the empty shape {list(value.shape)}")
            shape = value.shape[self._first :]
            for axis, length in zip(self._shapes.get(name, ()), shape, strict=False):
                if axis is not None:
                    lengths.setdefault(axis, {})[name] = length
                    if axis in self._axes:
                        self._axes[axis].check(name, axis, length)
            if not is_finite(value):
                raise TeranInputError(f"{name} holds NaN or infinite values")
            if name in self._values:
                least, most = self._values[name]
                lowest, highest = value.min().item(), value.max().item()
                if not least <= lowest <= highest <= most:
                    raise TeranInputError(
                        f"{name} must lie within {least} and {most}, but holds values from "
                        f"{lowest} to {highest}"
                    )
        for axis, found in lengths.items():
            if len(set(found.values())) > 1:
                raise TeranInputError(f"the inputs differ in their number of {axis}: {found}")
        cells = prod(prod(value.shape[:2]) for value in inputs.values())
        if self._most_cells and cells > self._most_cells:
            raise TeranInputError(
                f"the request asks for {cells} cosines; at most {self._most_cells} are computed "
                "at once"
            )
