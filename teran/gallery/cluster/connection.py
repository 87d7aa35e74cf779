"""The connection to a Qdrant cluster, and its errors as ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import httpx
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException

from teran.errors import GalleryBusyError, GalleryError


def connect(url: str, api_key: str | None = None, timeout: int = 8) -> QdrantClient:
    """A client of the cluster at `url`; ":memory:" is an empty one inside this process."""
    return QdrantClient(location=url, api_key=api_key, prefer_grpc=True, timeout=timeout)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn the client library's errors into ours; calls may be repeated, as writes replace."""
    try:
        yield
    except (httpx.TransportError, OSError) as error:
        raise GalleryBusyError(f"the Qdrant cluster can't be reached: {error}") from error
    except grpc.RpcError as error:
        gone = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        kind = GalleryBusyError if gone else GalleryError
        raise kind(f"the Qdrant cluster failed: {error.details()}") from error
    except (ApiException, ValueError) as error:  # the in-process one raises ValueError
        raise GalleryError(f"the Qdrant cluster failed: {error}") from error
