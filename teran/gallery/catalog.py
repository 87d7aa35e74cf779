"""What requests are answered from: a catalog of galleries by name, in a directory or a cluster."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from teran.errors import GalleryError, TeranInputError
from teran.gallery.courtesy import Courtesy
from teran.gallery.item import Item
from teran.gallery.search.kernels.base import Floats
from teran.gallery.search.pooling import Kind
from teran.gallery.search.query import Query, SearchResult
from teran.gallery.writer import Writer

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Model:
    """What a gallery is bound to: embeddings of another model mean nothing to it."""

    fingerprint: str
    embed_dim: int
    pooling: str


@dataclass(frozen=True)
class Description:
    """What a gallery says of itself."""

    kind: str
    model: dict[str, Any]

    def check(self, name: str, model: Model) -> None:
        """Refuse a gallery of another model.

        Raises:
            GalleryError: it belongs to another.
        """
        theirs = self.model.get("fingerprint")
        if theirs != model.fingerprint:
            raise GalleryError(
                f"gallery {name!r} was made with another model ({str(theirs)[:12]}, the server "
                f"runs {model.fingerprint[:12]}); index its images again under another name"
            )


class Gallery(Protocol):
    """Items of one kind."""

    name: str
    kind: Kind

    def write(self, upserts: Sequence[Item], deletes: Sequence[str]) -> int:
        """Store items, then remove some; both are searchable and durable on return.

        Returns:
            How many of the deleted ones were there.

        Raises:
            GalleryError: they can't be written.
        """

    def search(
        self, queries: Sequence[Query], where: Sequence[dict[str, Any] | None]
    ) -> list[SearchResult]:
        """Answer searches.

        Raises:
            TeranInputError: a filter makes no sense.
        """

    def rows_of(self, identifier: str) -> Floats:
        """An item's embeddings (R, E), to search for more like it.

        Raises:
            TeranInputError: there is no such item.
        """

    def items(self, points: Sequence[UUID]) -> dict[UUID, Item]:
        """Those of the items that are there, without their embeddings."""

    def similarity(self, point: UUID, query: Floats) -> Floats:
        """Cosines (R, W) of an item's rows and a query's; (0, W) for an item that is gone."""

    def info(self) -> dict[str, Any]:
        """Its size, model and memory."""


class GalleryCatalog(ABC):
    """All galleries a server can reach."""

    writer: Writer
    courtesy: Courtesy
    """Entered while requests are answered: steps of writes then wait."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is under way, and let go."""

    @abstractmethod
    def get(self, name: str) -> Gallery:
        """A gallery by its name or alias.

        Raises:
            TeranInputError: there is none.
            GalleryError: it can't be used; the message says why.
        """

    def get_or_create(self, name: str, kind: Kind) -> Gallery:
        """A gallery to write to, made where there is none; in the writing thread.

        Raises:
            TeranInputError: the name can't be used, or names a gallery of another kind.
            GalleryError: it can't be used or made.
        """
        if not self.exists(name):
            check_name(name)
            self.create(name, kind)
        return self.writable(name, kind)

    def writable(self, name: str, kind: Kind) -> Gallery:
        """A gallery for items of a kind.

        Raises:
            TeranInputError: there is none, or it is of another kind.
            GalleryError: it can't be used.
        """
        gallery = self.get(name)
        if gallery.kind is not kind:
            raise TeranInputError(f"gallery {name!r} holds {gallery.kind}, not {kind}")
        return gallery

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether a gallery or an alias has that name, usable or not."""

    @abstractmethod
    def create(self, name: str, kind: Kind) -> None:
        """Make an empty gallery.

        Raises:
            TeranInputError: there are too many.
            GalleryError: it can't be made.
        """

    @abstractmethod
    def set_alias(self, alias: str, name: str) -> None:
        """Have `alias` mean the gallery `name` from now on.

        Raises:
            TeranInputError: a gallery has that name, or there is no gallery `name`.
        """

    @abstractmethod
    def remove_alias(self, alias: str) -> None:
        """Have `alias` mean nothing any more.

        Raises:
            TeranInputError: there is none of that name.
        """

    @abstractmethod
    def drop(self, name: str) -> None:
        """Remove a gallery, usable or not, and everything in it.

        Raises:
            TeranInputError: there is none of that name, or an alias still points at it.
        """

    @abstractmethod
    def snapshot(self, name: str) -> str:
        """Write all of a gallery to one file, and tell where.

        Raises:
            GalleryError: it can't be written.
        """

    @abstractmethod
    def restore(self, file: str, name: str) -> Gallery:
        """Make a gallery from a snapshot.

        Raises:
            TeranInputError: the file or the name can't be used.
            GalleryError: the file is damaged, or made with another model; nothing is left behind.
        """

    @abstractmethod
    def info(self) -> dict[str, Any]:
        """The same of all galleries, those that can't be used, and aliases."""


def check_name(name: str) -> None:
    """Check a gallery's name or alias.

    Raises:
        TeranInputError: it can't be one.
    """
    if not NAME.fullmatch(name):
        raise TeranInputError(
            f"gallery name {name[:64]!r}: use up to 64 lower-case letters, digits, _ and -"
        )


def unknown(name: str, known: set[str]) -> TeranInputError:
    """The error for a name that is no gallery's."""
    return TeranInputError(
        f"there is no gallery {name[:64]!r}; "
        + (f"there are {', '.join(sorted(known))}" if known else "index something first")
    )
