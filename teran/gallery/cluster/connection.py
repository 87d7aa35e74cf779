"""The connection to a Qdrant cluster, and its errors as ours."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import grpc
import httpx
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException

from teran.errors import GalleryBusyError, GalleryError, GalleryUnreachableError

_PORT = 6333
_REST = 2.0
"""Seconds a cluster is left alone that did not answer."""


def connect(url: str, api_key: str | None = None, timeout: int = 8) -> QdrantClient:
    """A client of a cluster.

    Args:
        url: http(s)://host:port, where gRPC is at the port after it, as Qdrant has it of itself;
            ":memory:" is an empty cluster inside this process.
        api_key: what it asks for.
        timeout: seconds for a call.
    """
    return QdrantClient(
        location=url,
        api_key=api_key,
        prefer_grpc=True,
        grpc_port=(urlsplit(url).port or _PORT) + 1,
        grpc_options={"grpc.max_reconnect_backoff_ms": int(1000 * _REST)},
        timeout=timeout,
    )


class Calls:
    """Calls to one cluster: their errors are ours, and one that is away is left alone for a while.

    Who asks meanwhile gets the same error at once, rather than wait for another time-out.
    """

    def __init__(self) -> None:
        self._failure: GalleryUnreachableError | None = None
        self._until = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """A call in the block.

        Raises:
            GalleryUnreachableError: the cluster does not answer.
            GalleryBusyError: it did not a moment ago.
            GalleryError: it failed.
        """
        failure = self._failure
        if failure and time.monotonic() < self._until:
            raise GalleryBusyError(str(failure))  # nothing was asked of it
        try:
            with translated_errors():
                yield
        except GalleryUnreachableError as error:
            self._failure, self._until = error, time.monotonic() + _REST
            raise
        self._failure = None


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client library's errors into ours; calls may be repeated, as writes replace."""
    try:
        yield
    except (httpx.TransportError, OSError) as error:
        raise GalleryUnreachableError(f"the Qdrant cluster can't be reached: {error}") from error
    except grpc.RpcError as error:
        gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        kind = GalleryUnreachableError if gone else GalleryError
        raise kind(f"the Qdrant cluster failed: {error.details()}") from error
    except (ApiException, ValueError) as error:  # the in-process one raises ValueError
        raise GalleryError(f"the Qdrant cluster failed: {error}") from error
