"""Keeps several batches in flight and yields single results in the order of their items."""

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from itertools import islice
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Send = Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]


Given = TypeVar("Given", contravariant=True)
Got = TypeVar("Got", covariant=True)


class SendBulk(Protocol[Given, Got]):
    """Sends one batch; if it is `bulk`, nobody waits for it in particular."""

    def __call__(
        self, batch: Sequence[Given], *, bulk: bool = False
    ) -> Awaitable[Sequence[Got]]: ...


Items = Iterable[Item] | AsyncIterator[Item]


async def _next_items(items: Items[Item], count: int) -> list[Item]:
    """The next items; a synchronous source is read in a thread, as it may block."""
    if isinstance(items, AsyncIterator):
        taken = []
        async for item in items:
            taken.append(item)
            if len(taken) == count:
                break
        return taken
    return await asyncio.to_thread(lambda: list(islice(items, count)))


def _runs(items: list[Item], key: Callable[[Item], Hashable] | None) -> Iterator[list[Item]]:
    """Divide items, in their order, before each whose key is in the present part already."""
    if key is None:
        yield items
        return
    run: list[Item] = []
    keys: set[Hashable] = set()
    for item in items:
        if key(item) in keys:
            yield run
            run, keys = [], set()
        run.append(item)
        keys.add(key(item))
    yield run


async def pipeline(
    items: Items[Item],
    send: Send[Item, Result],
    *,
    batch_size: int,
    in_flight: int,
    length: Callable[[Item], int],
    key: Callable[[Item], Hashable] | None = None,
    fewer: Callable[[Item], int] | None = None,
) -> AsyncIterator[Result]:
    """Send all items in batches and yield a result for each, in order.

    Items are read one window ahead, and within a window batched with others of like length, so that
    little is padded and the server can join the batches.

    Args:
        items: the source; it may be endless.
        send: sends one batch and returns a result for each of its items.
        batch_size: the largest batch.
        in_flight: how many batches may be under way.
        length: an item's length.
        key: of items with the same one, the next is sent when the one before is done.
        fewer: how many items a batch may have whose longest is given, where that is less than
            `batch_size`.
    """
    source = items if isinstance(items, AsyncIterator) else iter(items)
    limit = asyncio.Semaphore(in_flight)
    window = batch_size * in_flight
    waiting: deque[tuple[asyncio.Task[Sequence[Result]], int]] = deque()
    last: dict[Hashable, asyncio.Task[Sequence[Result]]] = {}
    exhausted = False

    async def limited(
        batch: Sequence[Item], before: set[asyncio.Task[Sequence[Result]]]
    ) -> Sequence[Result]:
        if before:
            await asyncio.wait(before)
        async with limit:
            return await send(batch)

    def send_all(run: list[Item]) -> None:
        order = sorted(range(len(run)), key=lambda i: length(run[i]), reverse=True)
        places: dict[int, tuple[asyncio.Task[Sequence[Result]], int]] = {}
        while order:
            size = min(batch_size, fewer(run[order[0]])) if fewer else batch_size
            members, order = order[:size], order[size:]
            batch = [run[i] for i in members]
            keys = set(map(key, batch)) if key else set()
            before = {last[one] for one in keys & last.keys()}
            task = asyncio.create_task(limited(batch, before))
            last.update(dict.fromkeys(keys, task))
            places.update({i: (task, position) for position, i in enumerate(members)})
        waiting.extend(places[i] for i in range(len(run)))

    reading: asyncio.Task[list[Item]] | None = None
    try:
        while True:
            if reading is None and not exhausted and len(waiting) < window:
                reading = asyncio.create_task(_next_items(source, window))
            # What is there already does not wait for the source, nor suffer from its failure.
            if reading and (not waiting or (reading.done() and not reading.exception())):
                chunk = await reading
                reading, exhausted = None, len(chunk) < window
                for done in [one for one, task in last.items() if task.done()]:
                    del last[done]
                for run in _runs(chunk, key):
                    send_all(run)
            elif waiting:
                task, position = waiting.popleft()
                yield (await task)[position]
            else:
                return
    finally:
        left: set[asyncio.Task[Any]] = {task for task, _ in waiting}
        if reading:
            left.add(reading)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
