"""What makes the asynchronous client a synchronous one: an event loop in a thread of its own."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, Self, TypeVar

from teran.errors import TeranError
from teran_client.aio import AsyncTeranClient
from teran_client.channel import FORKED

Result = TypeVar("Result")
_INTERRUPT_PATIENCE = 5.0
"""Seconds an interrupted call gets to end."""


class BlockingClient:
    """Runs an `AsyncTeranClient`; its verbs are in `teran_client.sync`."""

    def __init__(self, client: AsyncTeranClient) -> None:
        """Start the thread."""
        self._process = os.getpid()
        self._client: Any = client  # whose types the verbs have by themselves
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="teran-client", daemon=True
        )
        self._closing, self._closed = threading.Lock(), False
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end what is under way; the client can't be used afterwards."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        if self._process != os.getpid():  # nothing of it is in a forked child
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._client.close()

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` on the loop and wait for it; when interrupted, wait until it has ended."""
        if self._closed or self._process != os.getpid():
            work.close()
            if self._closed:
                raise TeranError("the client is closed")
            raise TeranError(FORKED)
        ended = threading.Event()

        async def run() -> Result:
            try:
                return await work
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return future.result()
        except CancelledError as error:
            raise TeranError("the client was closed during the call") from error
        except BaseException:
            if not future.done():  # Ctrl-C: nothing goes on behind the caller's back
                future.cancel()
                ended.wait(_INTERRUPT_PATIENCE)
            raise

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run a verb; what comes asynchronously is iterated over as it comes."""
        result = self._wait(work)
        return self._iterate(result) if isinstance(result, AsyncIterator) else result

    def _iterate(self, results: AsyncIterator[Result]) -> Iterator[Result]:
        async def following() -> tuple[bool, Any]:
            try:
                return True, await anext(results)
            except StopAsyncIteration:
                return False, None

        try:
            while (step := self._wait(following()))[0]:
                yield step[1]
        finally:
            if hasattr(results, "aclose") and not self._closed:
                self._wait(results.aclose())
