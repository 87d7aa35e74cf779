"""Options that the gallery's process reads for itself, which the supervisor passes on to it."""

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from teran.commandline import Positive, options
from teran.contract import MAX_CAPTION_BYTES, MAX_RECORD_BYTES, QUERY_ROWS
from teran.secrets import read_key


@options
class Cluster:
    """Where galleries are, if not in a directory."""

    _: KW_ONLY
    gallery_url: str | None = None
    """A Qdrant cluster that holds the galleries: http://host:6333, with gRPC one port above."""
    gallery_api_key_file: Path | None = None
    """File with the cluster's key; else it is in TERAN_GALLERY_API_KEY."""

    @property
    def gallery_api_key(self) -> str | None:
        """The cluster's key.

        Raises:
            ServingError: what is given is none.
        """
        return read_key("TERAN_GALLERY_API_KEY", self.gallery_api_key_file)


@options
class RequestLimits:
    """What a request may hold at most; more is refused with its size."""

    _: KW_ONLY
    max_caption_bytes: Positive = MAX_CAPTION_BYTES
    """Of one caption, in UTF-8."""
    max_photo_bytes: Positive = 32 << 20
    """Of one photo, as JPEG, PNG or WebP."""
    max_rows: Positive = 128
    """Regions or words of an item, or of a query to a gallery."""
    max_query_rows: Positive = QUERY_ROWS
    """Regions or words of all queries of a request together."""
    max_record_bytes: Annotated[int, Parameter(validator=Number(gte=1, lte=MAX_RECORD_BYTES))] = (
        65536
    )
    """Of an item's id, location and metadata, as JSON; up to 1 MiB."""
    max_answer_bytes: Positive = 64 << 20
    """Of the records that a request finds."""


@options
class Admission:
    """How much work may wait."""

    _: KW_ONLY
    max_wait: Annotated[float, Parameter(validator=Number(gte=0))] = 0.07
    """Seconds a request may have to wait, by estimate; more are refused at once. 0: no limit."""


@options
class GallerySettings(Cluster, RequestLimits, Admission):
    """What galleries are kept in, searched on, and changed with."""

    _: KW_ONLY
    gallery: Path | None = None
    """Directory of the galleries; by default REPOSITORY.gallery."""
    gallery_count: Positive = 100
    """Galleries in the directory, beyond which none is made."""
    gallery_snapshots: Positive = 100
    """Snapshots kept in the directory, beyond which none is written."""
    gallery_device: str = "cpu"
    """Where to scan: cpu, cuda, cuda:N, or several GPUs that hold a part each: cuda:0,cuda:1."""
    gallery_precision: str = "fp16"
    """Of a GPU's copy: fp16, bf16, int8, or fp8 from compute capability 8.9 on."""
    write_key_file: Path | None = None
    """File with the key that changes of galleries ask for; else it is in TERAN_WRITE_KEY."""

    @property
    def write_key(self) -> str | None:
        """Asked for by calls that change galleries.

        Raises:
            ServingError: what is given is none.
        """
        return read_key("TERAN_WRITE_KEY", self.write_key_file)
