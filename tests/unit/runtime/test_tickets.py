"""Tickets for answers, over a real socket."""

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
    assert "no ticket" in str(again)


def test_nobody_waits_for_a_process_that_is_gone(office: TicketOffice) -> None:
    """Here its end of the connection is closed, as the kernel does when it dies."""
    holder, pending = TicketHolder(), Future[Reports | TeranError]()
    holder.redeem([office.ticket(answered([b"{}"]))])
    assert holder._connection is not None
    threading.Timer(0.1, pending.set_result, [GalleryError("never read")]).start()
    ticket = office.ticket(pending)
    holder._connection.close()
    assert isinstance(holder.redeem([ticket])[0], TeranError)
    office.close()
    assert isinstance(holder.redeem([7])[0], GalleryUnreachableError)
    with pytest.MonkeyPatch.context():
        reopened = TicketOffice()
        assert holder.redeem([reopened.ticket(answered([b"{}"]))]) == [[b"{}"]]
        reopened.close()


def test_without_a_supervisor_there_are_no_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TICKETS_VARIABLE, raising=False)
    with pytest.raises(GalleryError, match="teran serve"):
        TicketOffice().ticket(answered([b"{}"]))
