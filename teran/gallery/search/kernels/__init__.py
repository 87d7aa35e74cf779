"""Kernels: score many items against many queries without writing a cosine to memory.

`kernel()` gives the native one where it was built and the processor can run it, else the portable
one in numpy. Both give the same scores, up to the rounding of fp32 sums.
"""

from teran.gallery.search.kernels.base import Kernel, Lanes, Rows, RowType, Sides
from teran.gallery.search.kernels.choice import kernel
from teran.gallery.search.kernels.native import NativeKernel

__all__ = ["Kernel", "Lanes", "NativeKernel", "RowType", "Rows", "Sides", "kernel"]
