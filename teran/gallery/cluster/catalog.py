"""The galleries of a cluster: collections and aliases that begin with a prefix."""

import time
from dataclasses import asdict
from typing import Any

from qdrant_client import QdrantClient, models

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import Description, GalleryCatalog, Model, check_name, unknown
from teran.gallery.cluster.connection import Calls
from teran.gallery.cluster.gallery import ClusterGallery
from teran.gallery.courtesy import Courtesy
from teran.gallery.layout import VECTORS
from teran.gallery.search.kernels import Kernel
from teran.gallery.search.pooling import Kind, Pooling
from teran.gallery.writer import Writer

PREFIX = "teran-"
"""Every gallery's collection, and every alias, begins with it."""
_AGE = 1.0
"""Seconds after which names are asked for again: another server may have moved an alias."""


class ClusterCatalog(GalleryCatalog):
    """All galleries of a cluster. Several servers may use it at once."""

    def __init__(self, client: QdrantClient, model: Model, kernel: Kernel) -> None:
        """Use a cluster, which need not be there yet; the client stays the caller's."""
        self._client, self._model, self._kernel = client, model, kernel
        self._open: dict[str, ClusterGallery] = {}
        self._collections: set[str] = set()
        self._aliases: dict[str, str] = {}
        self._calls = Calls()
        self._asked = -_AGE
        self.writer, self.courtesy = Writer(lambda: None), Courtesy()

    def close(self) -> None:
        self.writer.close()

    def get(self, name: str) -> ClusterGallery:
        collection = self._find(name)
        if collection is None:
            names = {one.removeprefix(PREFIX) for one in (*self._collections, *self._aliases)}
            raise unknown(name, names)
        if collection not in self._open:
            own = collection.removeprefix(PREFIX)
            self._open[collection] = ClusterGallery(
                self._client, self._calls, collection, own, self._model, self._kernel
            )
        return self._open[collection]

    def exists(self, name: str) -> bool:
        return self._find(name) is not None

    def create(self, name: str, kind: Kind) -> None:
        Pooling(self._model.pooling, kind)
        vectors = models.VectorParams(
            size=self._model.embed_dim,
            distance=models.Distance.DOT,
            datatype=models.Datatype.FLOAT16,
            on_disk=True,
            multivector_config=models.MultiVectorConfig(
                comparator=models.MultiVectorComparator.MAX_SIM
            ),
            hnsw_config=models.HnswConfigDiff(m=0),  # every item is compared
        )
        try:
            with self._calls():
                self._client.create_collection(
                    PREFIX + name,
                    vectors_config={VECTORS: vectors},
                    metadata=asdict(Description(kind.value, asdict(self._model))),
                )
        except GalleryError:
            self._refresh()
            if PREFIX + name not in self._collections:  # another server was faster, else
                raise
        self._refresh()

    def set_alias(self, alias: str, name: str) -> None:
        check_name(alias)
        self._refresh()
        if PREFIX + alias in self._collections:
            raise TeranInputError(f"{alias!r} is a gallery, so it can't be an alias")
        if PREFIX + name not in self._collections:
            raise TeranInputError(f"there is no gallery {name[:64]!r} to point {alias!r} at")
        create = models.CreateAlias(collection_name=PREFIX + name, alias_name=PREFIX + alias)
        operations: list[Any] = [models.CreateAliasOperation(create_alias=create)]
        if PREFIX + alias in self._aliases:
            delete = models.DeleteAlias(alias_name=PREFIX + alias)
            operations.insert(0, models.DeleteAliasOperation(delete_alias=delete))
        with self._calls():
            self._client.update_collection_aliases(operations)
        self._refresh()

    def remove_alias(self, alias: str) -> None:
        self._refresh()
        if PREFIX + alias not in self._aliases:
            raise TeranInputError(f"there is no alias {alias[:64]!r}")
        delete = models.DeleteAlias(alias_name=PREFIX + alias)
        with self._calls():
            self._client.update_collection_aliases(
                [models.DeleteAliasOperation(delete_alias=delete)]
            )
        self._refresh()

    def drop(self, name: str) -> None:
        self._refresh()
        pointing = sorted(alias for alias, to in self._aliases.items() if to == PREFIX + name)
        if pointing:
            alias = pointing[0].removeprefix(PREFIX)
            raise TeranInputError(f"alias {alias!r} points at {name!r}; move it first")
        if PREFIX + name not in self._collections:
            raise TeranInputError(f"there is no gallery {name[:64]!r} that could be dropped")
        with self._calls():
            self._client.delete_collection(PREFIX + name)
        self._refresh()

    def snapshot(self, name: str) -> str:
        raise _own_snapshots(name)

    def restore(self, file: str, name: str) -> ClusterGallery:  # noqa: ARG002
        raise _own_snapshots(name)

    def info(self) -> dict[str, Any]:
        self._refresh()
        galleries, unusable = [], {}
        for name in sorted(one.removeprefix(PREFIX) for one in self._collections):
            try:
                galleries.append(self.get(name).info())
            except GalleryError as error:
                unusable[name] = str(error)
        aliases = {
            alias.removeprefix(PREFIX): to.removeprefix(PREFIX)
            for alias, to in self._aliases.items()
        }
        return {
            "galleries": galleries,
            "unusable": unusable,
            "aliases": aliases,
            "kernel": "qdrant cluster",
        }

    def _find(self, name: str) -> str | None:
        """The collection that a name or alias means."""
        wanted = PREFIX + name
        known = wanted in self._collections or wanted in self._aliases
        if not known or time.monotonic() - self._asked > _AGE:
            self._refresh()
        wanted = self._aliases.get(wanted, wanted)
        return wanted if wanted in self._collections else None

    def _refresh(self) -> None:
        """Ask the cluster for its names.

        Raises:
            GalleryUnreachableError: it does not answer.
        """
        with self._calls():
            collections = self._client.get_collections().collections
            aliases = self._client.get_aliases().aliases
        names = (one.name for one in collections)
        self._collections = {name for name in names if name.startswith(PREFIX)}
        self._aliases = {
            one.alias_name: one.collection_name
            for one in aliases
            if one.alias_name.startswith(PREFIX)
        }
        for gone in self._open.keys() - self._collections:
            del self._open[gone]
        self._asked = time.monotonic()


def _own_snapshots(name: str) -> TeranInputError:
    return TeranInputError(
        f"gallery {name!r} is in a Qdrant cluster, which takes its own snapshots of collection "
        f"{PREFIX + name!r}"
    )
