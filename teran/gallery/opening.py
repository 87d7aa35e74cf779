"""Opens a server's galleries as its settings say: those of a directory, or of a cluster."""

import os
from functools import partial

from teran.errors import GalleryError
from teran.gallery.catalog import GalleryCatalog, Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.search.kernels import kernel
from teran.runtime.environment import THREADS_VARIABLE
from teran.runtime.settings import GallerySettings


def open_catalog(model: Model, settings: GallerySettings) -> GalleryCatalog:
    """Open all galleries of a model.

    Raises:
        GalleryError: they can't be opened, or not be kept on the device that is asked for.
    """
    chosen = kernel(int(os.environ.get(THREADS_VARIABLE.format(model="GALLERY"), "0")))
    if settings.gallery_url:
        from teran.gallery.cluster.catalog import ClusterCatalog
        from teran.gallery.cluster.connection import connect

        client = connect(settings.gallery_url, settings.gallery_api_key)
        return ClusterCatalog(client, model, chosen)
    directory, flush = settings.gallery, settings.gallery_flush
    if directory is None:
        raise GalleryError("no directory for the galleries; name one in TERAN_GALLERY")
    if settings.gallery_device == "cpu":
        return EmbeddedCatalog(directory, model, chosen, flush=flush)
    from teran.gallery.search.device import DeviceCopy

    copy = partial(DeviceCopy, settings.gallery_device, settings.gallery_precision)
    copy()  # a device that is not there is better reported now than by every gallery
    return EmbeddedCatalog(directory, model, chosen, flush=flush, device=copy)
