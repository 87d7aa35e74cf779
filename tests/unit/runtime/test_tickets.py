"""Tickets for answers, over a real socket."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from teran.errors import (
    GalleryBusyError,
    GalleryError,
    GalleryUnreachableError,
    TeranError,
    TeranInputError,
)
from teran.runtime.environment import TICKETS_VARIABLE
from teran.runtime.tickets import NO_TICKET, Reports, TicketHolder, TicketOffice

Answer = Future[Reports | TeranError]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TicketOffice]:
    monkeypatch.setenv(TICKETS_VARIABLE, str(tmp_path / "tickets"))
    opened = TicketOffice()
    yield opened
    opened.close()


def answered(result: Reports | TeranError) -> Answer:
    future: Answer = Future()
    future.set_result(result)
    return future


def test_answers_come_in_the_order_of_the_tickets(office: TicketOffice) -> None:
    late: Answer = Future()
    tickets = [
        office.ticket(late),
        NO_TICKET,
        office.ticket(answered(GalleryBusyError("a snapshot is being written"))),
        office.ticket(answered(TeranInputError("no such id: b"))),
    ]
    threading.Timer(0.1, late.set_result, [[b'{"id": "a"}', b'{"id": "\xc3\xa9"}']]).start()
    holder = TicketHolder()
    first, none, busy, wrong = holder.redeem(tickets)
    assert first == [b'{"id": "a"}', '{"id": "é"}'.encode()]
    assert none == [b"{}"]
    assert type(busy) is GalleryBusyError
    assert type(wrong) is TeranInputError
    assert str(wrong) == "no such id: b"
    again = holder.redeem([tickets[0]])[0]
    assert isinstance(again, GalleryUnreachableError)


OFFICE = """
from concurrent.futures import Future
from teran.runtime.tickets import TicketOffice
office = TicketOffice()
print(office.ticket(Future()), flush=True)
input()
"""


def test_nobody_waits_for_a_process_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TICKETS_VARIABLE, str(tmp_path / "tickets"))
    holder = TicketHolder()
    for _ in range(2):  # another takes its place
        with subprocess.Popen(
            [sys.executable, "-c", OFFICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            ticket = int(process.stdout.readline())
            threading.Timer(0.3, process.kill).start()
            assert isinstance(holder.redeem([ticket])[0], GalleryUnreachableError)
    assert isinstance(holder.redeem([7])[0], GalleryUnreachableError)
    opened = TicketOffice()
    assert holder.redeem([opened.ticket(answered([b"{}"]))]) == [[b"{}"]]
    opened.close()


SHORT_OF_FILES = """
import resource
from concurrent.futures import Future
from teran.runtime.tickets import TicketOffice
office, answer = TicketOffice(), Future()
answer.set_result([b"{}"])
number = office.ticket(answer)
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
print(number, flush=True)
input()
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
input()
"""


def test_who_comes_while_no_file_can_be_opened_is_answered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TICKETS_VARIABLE, str(tmp_path / "tickets"))
    with (
        subprocess.Popen(
            [sys.executable, "-c", SHORT_OF_FILES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ThreadPoolExecutor() as pool,
    ):
        assert process.stdin
        assert process.stdout
        assert process.stderr
        number = int(process.stdout.readline())
        with Client(str(tmp_path / "tickets")):  # for which accept() may have kept a number before
            assert "nobody can bring a ticket" in process.stderr.readline()
            redeemed = pool.submit(TicketHolder().redeem, [number])
            with pytest.raises(TimeoutError):
                redeemed.result(0.5)
            process.stdin.write("\n")
            process.stdin.flush()
            assert redeemed.result(30) == [[b"{}"]]
        process.kill()


def test_answers_that_nobody_wants_do_not_pile_up(office: TicketOffice) -> None:
    """Who waits for an answer that is not there yet does not lose it to them."""
    waiting: Answer = Future()
    ticket = office.ticket(waiting)
    forgotten = [office.ticket(answered([b"{}"])) for _ in range(5000)]
    waiting.set_result([b'"late"'])
    late, oldest, newest = TicketHolder().redeem([ticket, forgotten[0], forgotten[-1]])
    assert (late, newest) == ([b'"late"'], [b"{}"])
    assert isinstance(oldest, GalleryUnreachableError)


def test_without_a_supervisor_there_are_no_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TICKETS_VARIABLE, raising=False)
    with pytest.raises(GalleryError, match="teran serve"):
        TicketOffice().ticket(answered([b"{}"]))
