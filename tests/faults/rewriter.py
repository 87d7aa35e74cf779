"""Deletes an item, dies, comes back, and writes the item anew; prints when that is on the disk.

rewriter.py ROOT
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from teran.gallery.catalog import Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.embedded.files import sync_tree
from teran.gallery.item import Item
from teran.gallery.search.kernels import kernel
from teran.gallery.search.pooling import Kind

root, model = Path(sys.argv[1]), Model("a" * 64, 64, "MrSw")
old, new = (np.eye(36, 64, k=k, dtype=np.float16) for k in (0, 28))


print("ready", flush=True)
if not os.fork():
    galleries = EmbeddedCatalog(root, model, kernel(1))
    galleries.create("default", Kind.IMAGES)
    gallery = galleries.get("default")
    galleries.writer.write(gallery, [Item("kept", old), Item("again", old)]).result()
    galleries.writer.write(gallery, [], ["again"]).result()
    gallery.store.flush()
    sync_tree(root)  # as it comes to be in time
    os._exit(0)
_, status = os.wait()
assert status == 0
galleries = EmbeddedCatalog(root, model, kernel(1))
gallery = galleries.get("default")
galleries.writer.write(gallery, [Item("again", new)]).result()
gallery.store.flush()
print("stored", flush=True)
signal.pause()
