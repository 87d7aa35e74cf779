"""Writes to a gallery for as long as it lives, and prints what was acknowledged.

writer.py ROOT FIRST_VALUE
"""

import sys
from pathlib import Path

import numpy as np

from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind

root, first = sys.argv[1:]
model = Model("a" * 64, 64, "MrSw")
galleries = EmbeddedCatalog(Path(root), model, kernel(1))
gallery = galleries.get_or_create("default", Kind.IMAGES)
print("ready", flush=True)
value = int(first)
random = np.random.default_rng(value)
while True:
    rows = random.standard_normal((4, 36, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    items = []
    for one in rows:
        value += 1
        name = f"i{random.integers(200)}"
        items.append(Item(name, one.astype(np.float16), metadata={"v": value}))
    waiting = [(item, galleries.writer.write(gallery, [item])) for item in items]
    for item, written in waiting:
        written.result()
        print(item.id, item.metadata["v"], flush=True)
