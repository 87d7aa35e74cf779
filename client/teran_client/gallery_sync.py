"""The gallery verbs of the synchronous client; `AsyncGalleryVerbs` describes them."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from teran.contract import DEFAULT_GALLERY
from teran_client.aio import AsyncTeranClient
from teran_client.gallery import Entry, QueryLike, Where
from teran_client.images import ImageRegions
from teran_client.results import SearchResult

_Indexable = ImageRegions | str | Entry
Result = TypeVar("Result")


class GalleryVerbs(ABC):
    """Mixed into `TeranClient`, which gives it `_client`, `_wait` and `_iterate`."""

    _client: AsyncTeranClient

    @abstractmethod
    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` and wait for it."""

    @abstractmethod
    def _iterate(self, results: AsyncIterator[Result]) -> Iterator[Result]:
        """Iterate over what comes asynchronously."""

    @overload
    def index(
        self, items: _Indexable, *, gallery: str = DEFAULT_GALLERY, timeout: float | None = None
    ) -> str: ...
    @overload
    def index(
        self,
        items: Sequence[_Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        timeout: float | None = None,
    ) -> list[str]: ...
    @overload
    def index(
        self,
        items: Iterable[_Indexable],
        *,
        gallery: str = DEFAULT_GALLERY,
        timeout: float | None = None,
    ) -> Iterator[str]: ...
    def index(
        self, items: Any, *, gallery: str = DEFAULT_GALLERY, timeout: float | None = None
    ) -> str | list[str] | Iterator[str]:
        result: str | list[str] | AsyncIterator[str]
        result = self._wait(self._client.index(items, gallery=gallery, timeout=timeout))
        return self._iterate(result) if isinstance(result, AsyncIterator) else result

    @overload
    def search(
        self,
        queries: QueryLike,
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        min_score_per_word: float | None = None,
        explain: bool = False,
        exact: bool = False,
        timeout: float | None = None,
    ) -> SearchResult: ...
    @overload
    def search(
        self,
        queries: Sequence[QueryLike],
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        min_score_per_word: float | None = None,
        explain: bool = False,
        exact: bool = False,
        timeout: float | None = None,
    ) -> list[SearchResult]: ...
    def search(self, queries: Any, k: int = 10, **options: Any) -> Any:
        return self._wait(self._client.search(queries, k, **options))

    def search_like(
        self,
        identifier: str,
        k: int = 10,
        *,
        gallery: str = DEFAULT_GALLERY,
        where: Where | None = None,
        timeout: float | None = None,
    ) -> SearchResult:
        return self._wait(
            self._client.search_like(identifier, k, gallery=gallery, where=where, timeout=timeout)
        )

    def delete(
        self,
        ids: str | Sequence[str],
        *,
        gallery: str = DEFAULT_GALLERY,
        timeout: float | None = None,
    ) -> int:
        return self._wait(self._client.delete(ids, gallery=gallery, timeout=timeout))

    def known(
        self, ids: Sequence[str], *, gallery: str = DEFAULT_GALLERY, timeout: float | None = None
    ) -> list[bool]:
        return self._wait(self._client.known(ids, gallery=gallery, timeout=timeout))

    def gallery_info(
        self, gallery: str | None = None, *, timeout: float | None = None
    ) -> dict[str, Any]:
        return self._wait(self._client.gallery_info(gallery, timeout=timeout))

    def set_alias(
        self, alias: str, gallery: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        return self._wait(self._client.set_alias(alias, gallery, timeout=timeout))

    def drop_gallery(self, gallery: str, *, timeout: float | None = None) -> dict[str, Any]:
        return self._wait(self._client.drop_gallery(gallery, timeout=timeout))

    def snapshot(self, gallery: str = DEFAULT_GALLERY, *, timeout: float | None = None) -> str:
        return self._wait(self._client.snapshot(gallery, timeout=timeout))

    def restore(
        self, snapshot: str, gallery: str, *, timeout: float | None = None
    ) -> dict[str, Any]:
        return self._wait(self._client.restore(snapshot, gallery, timeout=timeout))
