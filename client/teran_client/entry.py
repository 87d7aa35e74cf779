"""What the client indexes: an image or a sentence, and what should be known of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from teran.contract import MAX_RECORD_BYTES, check_id
from teran.errors import TeranInputError
from teran_client.images import ImageRegions
from teran_client.photos import Photo, PhotoLike, describe, is_photo


@dataclass(frozen=True, eq=False)
class Entry:
    """Something to index: an image or a sentence, and what should be known of it.

    Attributes:
        content: the image, by its regions or as a photo, or the sentence.
        id: what search results call it; an entry with the same id is replaced.
        uri: where it can be found, a path or an address.
        metadata: whatever JSON can hold; searches can filter by it.
    """

    content: ImageRegions | PhotoLike | str
    id: str
    uri: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, item: object, name: str) -> "Entry":
        """An image is called by its name, a sentence by itself.

        Raises:
            TeranInputError: it is none, or a photo without a name.
        """
        if isinstance(item, ImageRegions):
            return cls(item, item.name)
        if isinstance(item, bytes | Image.Image):
            raise TeranInputError(f"{name} has no name; pass Entry(photo, id=...)")
        if is_photo(item):
            photo = Photo.of(item)
            uri = str(photo.source.absolute()) if isinstance(photo.source, Path) else None
            return cls(photo, photo.name, uri)
        if isinstance(item, str):
            return cls(item, item)
        if isinstance(item, Entry):
            return item
        raise TeranInputError(
            f"{name} is {type(item).__name__}, expected ImageRegions, a photo, a sentence or an "
            "Entry"
        )

    @classmethod
    def of_file(cls, photo: Photo, metadata: Mapping[str, Any] | None = None) -> "Entry":
        """A photo's file with what it says of itself, and what else is known.

        Raises:
            TeranPhotoError: it can't be read.
        """
        uri = str(photo.source.absolute()) if isinstance(photo.source, Path) else None
        return cls(photo, photo.name, uri, describe(photo.read()) | dict(metadata or {}))

    def record(self, name: str) -> bytes:
        """The record as the server takes it.

        Raises:
            TeranInputError: it can't be one.
        """
        try:
            check_id(self.id)
        except TeranInputError as error:
            raise TeranInputError(f"{name}: {error}") from None
        text = self.content if isinstance(self.content, str) else None
        known = {"id": self.id, "uri": self.uri, "text": text, "metadata": dict(self.metadata)}
        try:
            given = {key: value for key, value in known.items() if value is not None}
            record = json.dumps(given, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise TeranInputError(f"{name} ({self.id[:64]}): metadata: {error}") from error
        if len(record) > MAX_RECORD_BYTES:
            raise TeranInputError(
                f"{name} ({self.id[:64]}): its record has {len(record)} bytes; at most "
                f"{MAX_RECORD_BYTES} are accepted"
            )
        return record


IndexableOne = ImageRegions | Photo | bytes | Image.Image | Entry
"""What can be indexed, but for strings and paths, which may be directories."""
Indexable = IndexableOne | Path | str
