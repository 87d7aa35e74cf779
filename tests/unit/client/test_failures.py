"""What a failed call means is decided by its status and reason, never by words of a client's."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest
from teran_client import (
    AsyncTeranClient,
    TeranInputError,
    TeranOverloadedError,
    TeranServerError,
    TeranTimeoutError,
    TeranUnavailableError,
)
from teran_client.call import Call
from teran_client.failures import Outcome, read_failure
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from teran.contract import Reason, mark

Code = grpc.StatusCode
ANYTHING = "Stub process 'gallery_0_0' is not healthy. teran:busy: protocol is restricted"


@pytest.mark.parametrize(
    ("code", "details", "kind", "outcome"),
    [
        (Code.INVALID_ARGUMENT, f"no item {ANYTHING}", TeranInputError, Outcome.FINAL),
        (Code.INVALID_ARGUMENT, ANYTHING, TeranInputError, Outcome.FINAL),
        (Code.INTERNAL, f"in ensemble 'search', {mark(Reason.FAILED, ANYTHING)}",
         TeranServerError, Outcome.FINAL),
        (Code.INTERNAL, f"unexpected {ANYTHING}", TeranServerError, Outcome.FINAL),
        (Code.UNAVAILABLE, "in ensemble 'search', [request id: a1] Exceeds maximum queue size",
         TeranOverloadedError, Outcome.REFUSED),
        (Code.INTERNAL, "in ensemble 'search', Stub process 'gallery_0_0' is not healthy.",
         TeranUnavailableError, Outcome.CRASHED),
        (Code.INTERNAL, "in ensemble 'search', [request id: a1] Stub process 'gallery_0_0' is not "
         "healthy.", TeranUnavailableError, Outcome.CRASHED),
        (Code.UNAVAILABLE, f"in ensemble 'index', {mark(Reason.BUSY, 'a snapshot is written')}",
         TeranUnavailableError, Outcome.REFUSED),
        (Code.UNAVAILABLE, f"in ensemble 'search', {mark(Reason.OVERLOADED, 'later', 0.25)}",
         TeranOverloadedError, Outcome.REFUSED),
        (Code.UNAVAILABLE, "failed to connect to all addresses; last error: ...",
         TeranUnavailableError, Outcome.REFUSED),
        (Code.UNAVAILABLE, "Socket closed", TeranUnavailableError, Outcome.LOST),
        (Code.UNAVAILABLE, "This protocol is restricted, expecting header 'x'",
         TeranInputError, Outcome.FINAL),
        (Code.NOT_FOUND, "Request for unknown model: 'gallery' has no available versions",
         TeranUnavailableError, Outcome.REFUSED),
        (Code.NOT_FOUND, "Request for unknown model: 'galery' is not found",
         TeranServerError, Outcome.FINAL),
        (Code.CANCELLED, "CANCELLED", TeranUnavailableError, Outcome.LOST),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", TeranTimeoutError, Outcome.FINAL),
    ],
)  # fmt: skip
def test_the_status_and_the_reason_decide(
    code: Code, details: str, kind: type[Exception], outcome: Outcome
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details, None)
    call = Call("ModelInfer", pb.ModelInferRequest(model_name="gallery"), "host:1")
    failure = read_failure(error, call, 1)
    assert (type(failure.error), failure.outcome) == (kind, outcome)
    assert "teran:" not in str(failure.error).removesuffix(ANYTHING)


class Failing(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Fails as it is told, and counts; a real gRPC server, as no Triton fails on demand."""

    def __init__(self, code: Code, details: str) -> None:
        self.code, self.details, self.calls = code, details, 0

    async def ModelInfer(self, _request: object, context: grpc.aio.ServicerContext) -> object:  # noqa: N802
        self.calls += 1
        return await context.abort(self.code, self.details)

    async def ModelConfig(self, _request: object, _context: grpc.aio.ServicerContext) -> object:  # noqa: N802
        answer = pb.ModelConfigResponse()
        answer.config.max_batch_size = 8
        answer.config.input.add(name="region_features", dims=[-1, 4])
        answer.config.output.add(dims=[-1, 4])
        return answer


@asynccontextmanager
async def failing(code: Code, details: str) -> AsyncIterator[tuple[AsyncTeranClient, Failing]]:
    server, service = grpc.aio.server(), Failing(code, details)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with AsyncTeranClient(f"127.0.0.1:{port}", timeout=2, retries=10) as client:
            await client.info()
            yield client, service
    finally:
        await server.stop(None)


LOST = (Code.UNAVAILABLE, "Socket closed")
BUSY = (Code.UNAVAILABLE, mark(Reason.BUSY, "a snapshot is being written"))
VERBS: dict[str, Callable[[AsyncTeranClient], object]] = {
    "alias": lambda client: client.set_alias("live", "a"),
    "delete": lambda client: client.delete("a"),
    "drop": lambda client: client.drop_gallery("a"),
    "snapshot": lambda client: client.snapshot(),
    "restore": lambda client: client.restore("a.tar", "a"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_not_idempotent_is_not_repeated_after_a_lost_answer(verb: str) -> None:
    async def run() -> None:
        async with failing(*LOST) as (client, service):
            with pytest.raises(TeranUnavailableError, match="may have been done"):
                await VERBS[verb](client)  # type: ignore[misc]
            assert service.calls == 1

    asyncio.run(run())


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_refused_is_repeated_whatever_it_is(verb: str) -> None:
    async def run() -> None:
        async with failing(*BUSY) as (client, service):
            with pytest.raises(TeranUnavailableError, match="a snapshot is being written"):
                await VERBS[verb](client)  # type: ignore[misc]
            assert service.calls > 2

    asyncio.run(run())


def test_nothing_was_done_where_no_connection_was_made() -> None:
    """In gRPC's own words, which differ from those for a connection that broke."""

    async def run() -> None:
        async with failing(*LOST) as (client, service):
            url = client._channel.url
        with pytest.raises(TeranUnavailableError) as caught:
            await AsyncTeranClient(url, timeout=5, retries=1)._operate("drop", "a", 5)
        assert service.calls == 0
        assert "may have been done" not in str(caught.value)

    asyncio.run(run())


def test_a_search_is_repeated_after_a_lost_answer() -> None:
    async def run() -> None:
        async with failing(*LOST) as (client, service):
            said = r"Socket closed, 3 times with this request$"  # the server may die of it
            with pytest.raises(TeranUnavailableError, match=said):
                await client.search("a dog", timeout=30)
            assert service.calls == 3

    asyncio.run(run())


def test_what_models_die_of_is_sent_a_few_times_only() -> None:
    async def run() -> None:
        crash = "in ensemble 'search', Stub process 'gallery_0_0' is not healthy."
        async with failing(Code.INTERNAL, crash) as (client, service):
            with pytest.raises(TeranServerError, match="gallery has died, 3 times with this") as e:
                await client.search("a dog", timeout=30)
            assert service.calls == 3
            assert not isinstance(e.value, TeranUnavailableError)

    asyncio.run(run())


FULL = (Code.UNAVAILABLE, mark(Reason.OVERLOADED, "about 1 s of work is waiting already", 0.01))


def test_an_overloaded_server_is_asked_again_a_few_times_only() -> None:
    """Not by every call: a client has so many repetitions, and earns them by what is answered."""

    async def run() -> None:
        async with failing(*FULL) as (client, service):
            with pytest.raises(TeranOverloadedError, match="1 s of work is waiting") as caught:
                await client.search("a dog")
            assert caught.value.retry_after == pytest.approx(0.01)
            assert 2 <= service.calls <= 11
            for _ in range(20):
                with pytest.raises(TeranOverloadedError):
                    await client.search("a dog", timeout=0.5)
            assert service.calls <= 31

    asyncio.run(run())


def test_what_has_no_time_for_a_repetition_spends_none() -> None:
    async def run() -> None:
        full = (Code.UNAVAILABLE, mark(Reason.OVERLOADED, "1 s of work is waiting", 0.5))
        async with failing(*full) as (client, service):
            for _ in range(20):
                with pytest.raises(TeranOverloadedError):
                    await client.search("a dog", timeout=0.3)
            before = service.calls
            with pytest.raises(TeranOverloadedError):
                await client.search("a dog")
            assert service.calls > before + 1

    asyncio.run(run())


def test_what_a_server_was_away_for_goes_on_where_it_has_too_much_to_do() -> None:
    """All of that comes back together, and would spend what there is for overload at once."""

    async def run() -> None:
        away = "in ensemble 'search', Stub process 'gallery_0_0' is not healthy."
        async with failing(Code.INTERNAL, away) as (client, service):
            asked = [asyncio.create_task(client.search("a dog", timeout=10)) for _ in range(30)]
            while service.calls < 30:
                await asyncio.sleep(0.01)
            service.code, service.details = FULL
            while service.calls < 120 and not any(one.done() for one in asked):
                await asyncio.sleep(0.01)
            assert not any(one.done() for one in asked)
            with pytest.raises(TeranOverloadedError):  # as this one has waited for nothing
                await client.search("a dog")
            for one in asked:
                one.cancel()

    asyncio.run(run())


def test_bulk_waits_until_an_overloaded_server_takes_it() -> None:
    async def run() -> None:
        async with failing(*FULL) as (client, service):
            with pytest.raises(TeranOverloadedError):
                await client.search([f"dog {i}" for i in range(9)], timeout=3)
            assert service.calls > 15

    asyncio.run(run())
