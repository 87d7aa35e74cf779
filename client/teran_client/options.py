"""Options that several commands share, and the client they describe."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from teran.commandline import options
from teran.contract import WRITE_KEY_HEADER
from teran.errors import TeranInputError
from teran.secrets import read_key
from teran_client.channel import Tls
from teran_client.sync import TeranClient

Size = Annotated[str | None, Parameter(help="The images' size, as 640x480, where no file has it.")]


@options
class Access:
    """How to reach a server whose address is known."""

    _: KW_ONLY
    timeout: float = 60.0
    """Seconds a request may take, retries included."""
    ca: Annotated[Path | None, Parameter(env_var="TERAN_TLS_CA")] = None
    """Certificate authority; switches TLS on."""
    write_key_file: Path | None = None
    """File with the key for changes of galleries; else it is in TERAN_WRITE_KEY."""
    header: Annotated[tuple[str, ...], Parameter(env_var=(), negative=(), show_default=False)] = ()
    """Metadata sent with every request, as key=value; as key=@file where it is a secret."""

    @contextmanager
    def client_of(self, url: str, *, progress: bool = False) -> Iterator[TeranClient]:
        """A client of an address, closed at the end.

        Raises:
            TeranInputError: a header is none.
            ServingError: the write key is none.
        """
        headers = {}
        for entry in self.header:
            key, separator, value = entry.partition("=")
            if not separator:
                raise TeranInputError(f"--header is {entry!r}, expected key=value")
            headers[key] = _read(key, value[1:]) if value.startswith("@") else value
        write_key = read_key("TERAN_WRITE_KEY", self.write_key_file)
        if write_key:
            headers.setdefault(WRITE_KEY_HEADER, write_key)
        tls = Tls(root_certificates=self.ca) if self.ca else None
        with TeranClient(
            url, timeout=self.timeout, tls=tls, headers=headers, progress=progress
        ) as client:
            yield client


@options
class Connection(Access):
    """How to reach a server."""

    _: KW_ONLY
    url: str = "localhost:8001"
    """The server's gRPC address, host:port; of several servers with commas, or dns:///host:port."""

    def client(self, *, progress: bool = False) -> AbstractContextManager[TeranClient]:
        """A client, closed at the end.

        Raises:
            TeranInputError: a header is none.
            ServingError: the write key is none.
        """
        return self.client_of(self.url, progress=progress)


@options
class PatientConnection(Connection):
    """How to reach a server that has something long to do."""

    timeout: float = 600.0
    """Seconds a request may take, retries included."""


def parse_size(text: str | None) -> tuple[float, float] | None:
    """Read WIDTHxHEIGHT."""
    if text is None:
        return None
    try:
        width, height = text.lower().split("x")
        return float(width), float(height)
    except ValueError as error:
        raise TeranInputError(f"--size is {text!r}, expected WIDTHxHEIGHT") from error


def _read(header: str, file: str) -> str:
    """A header's value from a file.

    Raises:
        TeranInputError: it can't be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise TeranInputError(
            f"the header {header!r} can't be read from {file}: {error}"
        ) from error
