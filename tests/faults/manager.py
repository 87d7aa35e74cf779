"""Makes galleries and all that goes with them for as long as it lives, and prints what it has done.

manager.py ROOT
"""

import sys
from itertools import count
from pathlib import Path

import numpy as np

from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind

galleries = EmbeddedCatalog(Path(sys.argv[1]), Model("a" * 64, 64, "MrSw"), kernel(1))
rows = np.eye(36, 64, dtype=np.float16)
print("ready", flush=True)


def done(*words: str) -> None:
    print(*words, flush=True)


for i in count():
    name, copy = f"g{i}", f"r{i}"
    gallery = galleries.get_or_create(name, Kind.IMAGES)
    galleries.writer.write(gallery, [Item("one", rows), Item("two", rows)]).result()
    done("made", name)
    galleries.set_alias("current", name)
    done("alias", name)
    file = galleries.snapshot(name)
    done("snapshot", Path(file).name, name)
    galleries.restore(file, copy)
    done("made", copy)
    if i >= 2:
        galleries.drop(f"r{i - 2}")
        done("dropped", f"r{i - 2}")
