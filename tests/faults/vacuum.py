"""Makes a gallery most of whose items are deleted, dies, and opens it again; see disk.c.

vacuum.py ROOT STEP
"""

import ctypes
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
print("ready", flush=True)
if not os.fork():
    galleries = EmbeddedCatalog(root, model, kernel(1))
    galleries.create("default", Kind.IMAGES)
    gallery = galleries.get("default")
    rows = np.random.default_rng(0).standard_normal((600, 36, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    items = [Item(f"i{i}", one.astype(np.float16), metadata={"v": i}) for i, one in enumerate(rows)]
    galleries.writer.write(gallery, items).result()
    galleries.writer.write(gallery, [], [f"i{i}" for i in range(60, 600)]).result()
    gallery.store.flush()
    sync_tree(root)  # as it comes to be in time
    os._exit(0)
_, status = os.wait()
assert status == 0
disk = ctypes.CDLL(None)
disk.disk_cut(int(sys.argv[2]))
print("made", flush=True)
EmbeddedCatalog(root, model, kernel(1))
print(disk.disk_steps(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
