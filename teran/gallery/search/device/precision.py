"""How vectors are kept on a device."""

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

_FP8_SCALE = 64.0
"""Brings the values of normalised vectors, about 1/32, into the middle of e4m3's range."""


class Precision(StrEnum):
    """Of the rows, and of the lanes they are multiplied with."""

    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    """e4m3: half the memory, and half the time of one query. Wants compute capability 8.9."""
    INT8 = "int8"
    """As small, with a scale for each vector, on any GPU."""

    @property
    def type(self) -> torch.dtype:
        return {
            Precision.FP16: torch.float16,
            Precision.BF16: torch.bfloat16,
            Precision.FP8: torch.float8_e4m3fn,
            Precision.INT8: torch.int8,
        }[self]

    @property
    def factor(self) -> float:
        """What a product of two kept vectors is multiplied by, besides their scales."""
        return _FP8_SCALE**-2 if self is Precision.FP8 else 1.0


@dataclass(frozen=True, eq=False)
class Kept:
    """Vectors in a precision."""

    values: Tensor
    """(..., D)"""
    scale: Tensor | None
    """(...,) fp32, for int8."""

    @classmethod
    def of(cls, vectors: Tensor, precision: Precision) -> "Kept":
        """Vectors (..., D) of any float type, on whatever device they are."""
        if precision is Precision.INT8:
            wide = vectors.float()
            scale = wide.abs().amax(dim=-1) / 127
            values = wide / scale.clamp(min=1e-30)[..., None]
            return cls(values.round().to(torch.int8), scale)
        if precision is Precision.FP8:
            vectors = vectors * _FP8_SCALE
        return cls(vectors.to(precision.type), None)

    @classmethod
    def empty(cls, shape: tuple[int, ...], precision: Precision, device: torch.device) -> "Kept":
        """Room for vectors."""
        scale = precision is Precision.INT8
        return cls(
            torch.empty(shape, dtype=precision.type, device=device),
            torch.empty(shape[:-1], device=device) if scale else None,
        )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def __getitem__(self, which: slice) -> "Kept":
        """Some of them, not copied."""
        return Kept(self.values[which], None if self.scale is None else self.scale[which])

    def put(self, which: slice | Tensor, others: "Kept") -> None:
        """Write others in the place of some."""
        self.values[which] = others.values
        if self.scale is not None and others.scale is not None:
            self.scale[which] = others.scale

    def decoded(self, precision: Precision) -> Tensor:
        """In fp32."""
        values = self.values.float()
        if self.scale is not None:
            return values * self.scale[..., None]
        factor: float = precision.factor**0.5
        return values * factor
