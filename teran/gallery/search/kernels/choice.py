"""Chooses the kernel once for the process."""

from functools import cache

from teran.gallery.search.kernels.base import Kernel
from teran.gallery.search.kernels.native import NativeKernel
from teran.gallery.search.kernels.portable import PortableKernel


@cache
def kernel(threads: int = 0) -> Kernel:
    """The fastest kernel that works here, on so many threads; 0 stands for the available cores."""
    return NativeKernel.load(threads) or PortableKernel(threads)
