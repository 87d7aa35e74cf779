"""A gallery's rows in the memory of GPUs, and their scan there.

One pass over memory for all queries together: by our own kernel, or by torch's operations where
that does not fit. Only the best items' numbers leave a device. They are scored again on the host in
fp32, so that a coarser precision costs no recall. All of it runs on CPUs, too, which is how it is
tested.
"""

from teran.gallery.search.device.copy import DeviceCopy
from teran.gallery.search.device.precision import Precision

__all__ = ["DeviceCopy", "Precision"]
