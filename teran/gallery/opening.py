"""Opens the galleries of a server as its environment says: those of a directory or of a cluster."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from teran.gallery.catalog import GalleryCatalog, Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.search.kernels import kernel
from teran.runtime import environment as names


def open_catalog(model: Model, environment: Mapping[str, str]) -> GalleryCatalog:
    """Open all galleries of a model.

    Raises:
        GalleryError: they can't be opened, or not be kept on the device that is asked for.
    """
    threads = environment.get(names.THREADS_VARIABLE.format(model="GALLERY"), "0")
    chosen = kernel(int(threads))
    if url := environment.get(names.GALLERY_URL_VARIABLE):
        from teran.gallery.cluster.catalog import ClusterCatalog
        from teran.gallery.cluster.connection import connect

        client = connect(url, environment.get(names.GALLERY_API_KEY_VARIABLE))
        return ClusterCatalog(client, model, chosen)
    flush = environment.get(names.GALLERY_FLUSH_VARIABLE) == "1"
    directory = Path(environment[names.GALLERY_VARIABLE])
    device = environment.get(names.GALLERY_DEVICE_VARIABLE, "cpu")
    if device == "cpu":
        return EmbeddedCatalog(directory, model, chosen, flush=flush)
    from teran.gallery.search.device import DeviceCopy

    copy = partial(DeviceCopy, device, environment.get(names.GALLERY_PRECISION_VARIABLE, "fp16"))
    copy()  # a device that is not there is better reported now than by every gallery
    return EmbeddedCatalog(directory, model, chosen, flush=flush, device=copy)
