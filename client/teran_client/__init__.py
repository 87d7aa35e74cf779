"""The TERAN client: encode, score, match and rank images and captions over gRPC. Needs no torch."""

import logging

from teran.errors import (
    TeranError,
    TeranInputError,
    TeranOverloadedError,
    TeranServerError,
    TeranTimeoutError,
    TeranUnavailableError,
)
from teran_client.aio import AsyncTeranClient
from teran_client.entry import Entry
from teran_client.images import ImageRegions
from teran_client.photos import Photo
from teran_client.results import (
    Detection,
    EncodedCaption,
    Hit,
    Match,
    Profile,
    Ranked,
    SearchResult,
)
from teran_client.sync import TeranClient

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a program asks for our lines

__all__ = [
    "AsyncTeranClient",
    "Detection",
    "EncodedCaption",
    "Entry",
    "Hit",
    "ImageRegions",
    "Match",
    "Photo",
    "Profile",
    "Ranked",
    "SearchResult",
    "TeranClient",
    "TeranError",
    "TeranInputError",
    "TeranOverloadedError",
    "TeranServerError",
    "TeranTimeoutError",
    "TeranUnavailableError",
]
