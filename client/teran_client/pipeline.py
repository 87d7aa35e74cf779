"""Keeps several batches in flight and yields single results in the order of their items."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
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


async def pipeline(
    items: Items[Item],
    send: Send[Item, Result],
    *,
    batch_size: int,
    in_flight: int,
    length: Callable[[Item], int],
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
    """
    source = items if isinstance(items, AsyncIterator) else iter(items)
    limit = asyncio.Semaphore(in_flight)
    window = batch_size * in_flight
    waiting: deque[tuple[asyncio.Task[Sequence[Result]], int]] = deque()
    exhausted = False

    async def limited(batch: Sequence[Item]) -> Sequence[Result]:
        async with limit:
            return await send(batch)

    def send_all(chunk: list[Item]) -> None:
        order = sorted(range(len(chunk)), key=lambda i: length(chunk[i]))
        places: dict[int, tuple[asyncio.Task[Sequence[Result]], int]] = {}
        for start in range(0, len(order), batch_size):
            members = order[start : start + batch_size]
            task = asyncio.create_task(limited([chunk[i] for i in members]))
            places.update({i: (task, position) for position, i in enumerate(members)})
        waiting.extend(places[i] for i in range(len(chunk)))

    reading: asyncio.Task[list[Item]] | None = None
    try:
        while True:
            if reading is None and not exhausted and len(waiting) < window:
                reading = asyncio.create_task(_next_items(source, window))
            # What is there already does not wait for the source, nor suffer from its failure.
            if reading and (not waiting or (reading.done() and not reading.exception())):
                chunk = await reading
                reading, exhausted = None, len(chunk) < window
                send_all(chunk)
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
