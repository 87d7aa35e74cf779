"""Tickets for answers, over a real socket."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
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


def test_without_a_supervisor_there_are_no_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TICKETS_VARIABLE, raising=False)
    with pytest.raises(GalleryError, match="teran serve"):
        TicketOffice().ticket(answered([b"{}"]))
