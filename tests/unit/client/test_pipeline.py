"""Batches go out several at a time, and results come back complete and in order."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from teran_client.pipeline import pipeline
from teran_client.protocol import ModelInfo

from teran.contract import QUERY_ROWS
from tests.data import images


@settings(max_examples=60)
@given(
    items=st.lists(st.integers(1, 50), max_size=60),
    batch_size=st.integers(1, 7),
    in_flight=st.integers(1, 4),
    asynchronous=st.booleans(),
    fewer=st.none() | st.integers(1, 9),
)
def test_order_batches_and_flight(
    items: list[int], batch_size: int, in_flight: int, asynchronous: bool, fewer: int | None
) -> None:
    flying, most, sizes = 0, 0, []
    largest = min(batch_size, fewer or batch_size)

    async def send(batch: Sequence[int]) -> list[int]:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        sizes.append(len(batch))
        await asyncio.sleep(0.0001 * (sum(batch) % 5))
        flying -= 1
        return [item * 10 for item in batch]

    async def stream() -> AsyncIterator[int]:
        for item in items:
            yield item

    async def run() -> list[int]:
        results = pipeline(
            stream() if asynchronous else iter(items),
            send,
            batch_size=batch_size,
            in_flight=in_flight,
            length=lambda item: item,
            fewer=(lambda _: fewer) if fewer else None,
        )
        return [result async for result in results]

    assert asyncio.run(run()) == [item * 10 for item in items]
    assert most <= in_flight
    assert all(size <= largest for size in sizes)
    assert sum(size == largest for size in sizes) >= len(items) // (batch_size * in_flight)


def test_no_batch_of_queries_has_more_rows_than_a_server_takes() -> None:
    info = ModelInfo(24, 16, 64, 64, 100, 1 << 20, bulk_images=64, bulk_captions=64)
    for query in ("a", "a dog runs", "dog " * 200, images(1, longest=60)[0]):
        together = info.bulk_queries(query)
        assert 1 <= together <= 64
        assert together == 1 or together * len(query) <= QUERY_ROWS


def test_some_items_go_fewer_at_once() -> None:
    batches = []

    async def send(batch: Sequence[str]) -> Sequence[str]:
        batches.append(set(batch))
        return batch

    async def run() -> None:
        source = iter(["bb"] * 6 + ["a"] * 6)
        async for _ in pipeline(
            source, send, batch_size=4, in_flight=3, length=len, fewer={"a": 9, "bb": 2}.__getitem__
        ):
            pass

    asyncio.run(run())
    assert batches == [{"bb"}] * 3 + [{"a"}] * 2


def test_batches_hold_items_of_like_length() -> None:
    batches = []

    async def send(batch: Sequence[int]) -> Sequence[int]:
        batches.append(sorted(batch))
        return batch

    async def run() -> None:
        source = iter([1, 9, 2, 8, 3, 7])
        async for _ in pipeline(source, send, batch_size=3, in_flight=2, length=lambda i: i):
            pass

    asyncio.run(run())
    assert sorted(batches) == [[1, 2, 3], [7, 8, 9]]


@settings(max_examples=60)
@given(
    keys=st.lists(st.integers(0, 5), max_size=40),
    batch_size=st.integers(1, 5),
    in_flight=st.integers(1, 4),
)
def test_items_of_one_key_follow_each_other(
    keys: list[int], batch_size: int, in_flight: int
) -> None:
    """Or the older of two entries with the same id could stay."""
    items = [(key, number) for number, key in enumerate(keys)]
    done: list[tuple[int, int]] = []

    async def send(batch: Sequence[tuple[int, int]]) -> Sequence[int]:
        assert len({key for key, _ in batch}) == len(batch)
        await asyncio.sleep(0.0001 * (sum(number for _, number in batch) % 7))
        done.extend(batch)
        return [number for _, number in batch]

    async def run() -> list[int]:
        results = pipeline(
            iter(items),
            send,
            batch_size=batch_size,
            in_flight=in_flight,
            length=lambda item: item[1] * 7 % 5,
            key=lambda item: item[0],
        )
        return [result async for result in results]

    assert asyncio.run(run()) == list(range(len(keys)))
    for key in set(keys):
        numbers = [number for one, number in done if one == key]
        assert numbers == sorted(numbers)


def test_a_failure_ends_everything_under_way() -> None:
    cancelled = 0

    async def send(batch: Sequence[int]) -> Sequence[int]:
        nonlocal cancelled
        if 0 in batch:
            raise ValueError("broken")
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return batch

    async def run() -> None:
        async for _ in pipeline(
            iter(range(4)), send, batch_size=1, in_flight=4, length=lambda _: 1
        ):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
    assert cancelled == 3


def test_an_endless_source_is_read_only_as_far_as_needed() -> None:
    read = 0

    async def endless() -> AsyncIterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    async def send(batch: Sequence[int]) -> Sequence[int]:
        return batch

    async def run() -> list[int]:
        results = pipeline(endless(), send, batch_size=2, in_flight=2, length=lambda i: i)
        return [await anext(results) for _ in range(10)]

    assert asyncio.run(run()) == list(range(1, 11))
    assert read <= 20


def test_results_do_not_wait_for_a_slow_source() -> None:
    async def slow() -> AsyncIterator[int]:
        for i in range(4):
            yield i
        await asyncio.sleep(30)

    async def send(batch: Sequence[int]) -> Sequence[int]:
        return batch

    async def run() -> list[int]:
        results = pipeline(slow(), send, batch_size=2, in_flight=2, length=lambda _: 1)
        return [await asyncio.wait_for(anext(results), 5) for _ in range(4)]

    assert asyncio.run(run()) == [0, 1, 2, 3]


def test_results_before_a_failing_source_are_not_lost() -> None:
    def failing() -> Iterator[int]:
        yield from range(4)
        raise ValueError("broken source")

    async def send(batch: Sequence[int]) -> Sequence[int]:
        return batch

    received = []

    async def run() -> None:
        async for result in pipeline(
            failing(), send, batch_size=2, in_flight=2, length=lambda _: 1
        ):
            received.append(result)  # noqa: PERF401

    with pytest.raises(ValueError, match="broken source"):
        asyncio.run(run())
    assert received == [0, 1, 2, 3]
