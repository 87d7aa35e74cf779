"""Tickets for answers that are not ready yet, so that searches need not wait for writes.

The gallery gives them out, and another model waits for what they stand for.

Triton has a model answer a batch before it gets the next one, and answers that come later by a
response sender are never given when its process dies. So the ensembles of writes have one more
step, in a process of its own, which asks the gallery's over a socket and notices when that is gone.
"""

import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from secrets import randbits

from teran import errors
from teran.errors import GalleryError, GalleryUnreachableError, TeranError
from teran.runtime.environment import TICKETS_VARIABLE

NO_TICKET = 0
"""Stands for nothing, and is answered by an empty report."""
Reports = list[bytes]
"""Of a request's items."""
_MOST = 4096
"""Tickets that may be open: more than writes may wait. Whoever does not come loses an answer."""
_PAUSE = 0.1
"""Seconds until somebody is let in again where there was no room for it."""
_log = logging.getLogger(__name__)


class TicketOffice:
    """Gives out tickets, and answers those who bring them."""

    def __init__(self) -> None:
        """Open where the environment says, if it does."""
        self._open: OrderedDict[int, Future[Reports | TeranError]] = OrderedDict()
        self._listener: Listener | None = None
        self._closed = False
        address = os.environ.get(TICKETS_VARIABLE)
        if address:
            Path(address).unlink(missing_ok=True)  # of a process that was killed
            self._listener = Listener(address, family="AF_UNIX")
            threading.Thread(target=self._accept, name="tickets", daemon=True).start()

    def ticket(self, answer: "Future[Reports | TeranError]") -> int:
        """A ticket for an answer.

        Raises:
            GalleryError: nobody could bring it back.
        """
        if self._listener is None:
            raise GalleryError("galleries are changed only on a server that `teran serve` runs")
        number = randbits(62) | 1  # which nobody guesses, and no process has given before
        self._open[number] = answer
        if len(self._open) > _MOST:  # the oldest whose answer is there already, if there is one
            done = (one for one, future in self._open.items() if future.done())
            self._open.pop(next(done, next(iter(self._open))), None)
        return number

    def close(self) -> None:
        """Close; who waits is told that nobody is there."""
        self._closed = True
        if self._listener:
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._closed:
            try:
                connection = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except (OSError, RuntimeError) as error:  # as where no file or thread may be opened
                if not self._closed:
                    _log.warning("nobody can bring a ticket: %s", error)
                    time.sleep(_PAUSE)

    def _serve(self, connection: Connection) -> None:
        """Answer one who brings tickets, in their order."""
        with connection, suppress(EOFError, OSError):
            while True:
                for number in json.loads(connection.recv_bytes()):
                    connection.send_bytes(self._answer(number))

    def _answer(self, number: int) -> bytes:
        future = self._open.pop(number, None)
        if future is None:
            result: Reports | TeranError = GalleryUnreachableError(
                "this ticket is of another process, or was redeemed; the write may have been done"
            )
        else:
            result = future.result()
        if isinstance(result, TeranError):
            return json.dumps([type(result).__name__, str(result)]).encode()
        return json.dumps([None, [report.decode() for report in result]]).encode()


class TicketHolder:
    """Brings tickets, and waits for what they stand for."""

    def __init__(self) -> None:
        self._connection: Connection | None = None

    def redeem(self, numbers: Sequence[int]) -> list[Reports | TeranError]:
        """The answers of all tickets, in their order; waits for them."""
        answers: list[Reports | TeranError] = []
        wanted = [number for number in numbers if number != NO_TICKET]
        try:
            if wanted:
                self._send(wanted)
                answers = [self._receive() for _ in wanted]
        except (OSError, EOFError) as error:
            self._connection = None
            _log.warning("the gallery's process is gone: %s", error)
            gone = GalleryUnreachableError("the gallery's process died before it answered")
            answers = [gone for _ in wanted]
        left = iter(answers)
        return [[b"{}"] if number == NO_TICKET else next(left) for number in numbers]

    def _send(self, numbers: Sequence[int]) -> None:
        data = json.dumps(list(numbers)).encode()
        if self._connection is not None:
            with suppress(OSError):  # of a process that is gone, and that another has replaced
                self._connection.send_bytes(data)
                return
        self._connection = Client(os.environ[TICKETS_VARIABLE], family="AF_UNIX")
        self._connection.send_bytes(data)

    def _receive(self) -> Reports | TeranError:
        assert self._connection is not None
        kind, content = json.loads(self._connection.recv_bytes())
        if kind is None:
            return [report.encode() for report in content]
        error: TeranError = getattr(errors, kind)(content)
        return error
