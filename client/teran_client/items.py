"""Items as callers pass them: in a list, or one after the other, as they come."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from teran.errors import TeranInputError
from teran_client.photos import Photo
from teran_client.pipeline import Items

Item = TypeVar("Item")
Result = TypeVar("Result")


def checked(items: Items[Item], check: Callable[[object, str], Item], noun: str) -> Items[Item]:
    """Check items: those of a list at once, others as they come.

    Args:
        items: of a list, an iterator or an asynchronous iterator.
        check: gets an item and its name, and returns what to send.
        noun: what one is.

    Raises:
        TeranInputError: one can't be right, or it is none of these.
    """
    if isinstance(items, Sequence):
        return [check(item, f"{noun} {i}") for i, item in enumerate(items)]
    if isinstance(items, AsyncIterator):
        return _checked_later(items, check, noun)
    if isinstance(items, Iterable):
        return (check(item, f"{noun} {i}") for i, item in enumerate(items))
    raise TeranInputError(f"expected {noun}s, got {type(items).__name__}")


async def _checked_later(
    items: AsyncIterator[Any], check: Callable[[object, str], Item], noun: str
) -> AsyncIterator[Item]:
    index = 0
    async for item in items:
        yield check(item, f"{noun} {index}")
        index += 1


async def with_progress(
    results: AsyncIterator[Result], noun: str, total: int | None
) -> AsyncIterator[Result]:
    """Show a bar on standard error while results come."""
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(f"encoding {noun}s", total=total)
        async for result in results:
            progress.advance(task)
            yield result


async def apart(
    batch: Sequence[Item | Photo],
    send_others: Callable[[list[Item]], Awaitable[Sequence[Result]]],
    send_photo: Callable[[Photo], Awaitable[Result]],
) -> list[Result]:
    """Send a batch's photos one by one and the rest together; results are in the batch's order."""
    others = [item for item in batch if not isinstance(item, Photo)]
    answers = iter(await send_others(others) if others else [])
    return [await send_photo(item) if isinstance(item, Photo) else next(answers) for item in batch]
