"""Opens a server's galleries as its settings say: those of a directory, or of a cluster."""

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from teran.errors import GalleryError
from teran.gallery.catalog import GalleryCatalog, Model
from teran.gallery.embedded.catalog import EmbeddedCatalog
from teran.gallery.search.kernels import kernel
from teran.runtime.environment import THREADS_VARIABLE
from teran.runtime.settings import GallerySettings

if TYPE_CHECKING:  # it needs torch
    from teran.gallery.search.device import DeviceCopy


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
    directory, device = settings.gallery, None
    if directory is None:
        raise GalleryError("no directory for the galleries; name one in TERAN_GALLERY")
    if settings.gallery_device != "cpu":
        device = _device(settings)
    return EmbeddedCatalog(
        directory,
        model,
        chosen,
        device=device,
        most=settings.gallery_count,
        most_snapshots=settings.gallery_snapshots,
    )


def _device(settings: GallerySettings) -> Callable[[], "DeviceCopy"]:
    """What makes copies on a device; one that is not there is better reported now than by each."""
    from teran.gallery.search.device import DeviceCopy

    copy = partial(DeviceCopy, settings.gallery_device, settings.gallery_precision)
    copy()
    return copy
