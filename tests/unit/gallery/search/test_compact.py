"""The copy in memory that searches read."""

import ctypes
import re
from pathlib import Path
from uuid import uuid4

import numpy as np

from teran.gallery.search.compact import Compact, prepare
from tests.unit.gallery.small import DIM, unit


def own_memory() -> int:
    """Bytes of this process that no file holds, with nothing kept for later."""
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    (own,) = re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(own)


def test_what_a_few_items_take_does_not_depend_on_what_was_in_memory_before() -> None:
    """Room for many is kept for each length; none of it may lie on pages that were in use."""
    before = own_memory()
    for _ in range(2):  # the C library keeps what is as large as something that was freed
        blocks = [np.ones(3 << 20, np.uint8) for _ in range(60)]
        left, blocks = blocks[1::2], []
    compact = Compact(DIM)
    for rows in range(10, 60):
        compact.put(uuid4(), 1, prepare(unit(rows, rows).astype(np.float16), None))
    left.clear()
    assert own_memory() - before < 20 << 20
    assert len(compact) == 50
