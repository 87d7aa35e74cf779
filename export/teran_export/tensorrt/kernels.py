"""Which kernels a plan is made of, from what the builder logs in detail.

TensorRT's compiler names a kernel after the operations that are fused in it, each cut to a few
letters: `__myl_FcAddDivCastErfCastAddMulMul_myl0_10` is a matmul with its bias and GELU, in the
first profile.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_KERNEL = re.compile(r"^Name: (.+?)_myl(\d+)_\d+, LayerType: (\w+)", re.MULTILINE)
_NO_KERNELS = ("shape_call", "signal", "wait")


@dataclass(frozen=True)
class Kernel:
    """One launch on the GPU."""

    name: str
    """The operations in it, or the ONNX node that it is."""
    kind: str
    """The builder's word for what makes it: gemm, kgen or runtime_fusion."""
    profile: int

    @property
    def attention(self) -> bool:
        """Whether it is a whole attention: both products and the softmax between them."""
        return "mha" in self.name

    @property
    def matmul(self) -> bool:
        """Whether it is a matmul, with or without what follows it."""
        return self.kind == "gemm" or "Fc" in self.name

    @property
    def activation(self) -> bool:
        """Whether it is a matmul and an activation."""
        return self.matmul and bool(re.search("Erf|Relu", self.name))

    @property
    def norm(self) -> bool:
        """Whether it is a sum and a layer norm."""
        return bool(re.search("Add.*Mean.*Mean.*Sqrt", self.name))


def read_kernels(log: Iterable[str]) -> Iterator[Kernel]:
    """The kernels of every profile, in order.

    Args:
        log: what `build_plan` lets one listen to.
    """
    for message in log:
        for name, profile, kind in _KERNEL.findall(message):
            if kind not in _NO_KERNELS:
                yield Kernel(name, kind, int(profile))
