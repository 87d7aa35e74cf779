"""Options that several commands share, and the client they describe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from teran.errors import TeranInputError
from teran_client.channel import Tls
from teran_client.sync import TeranClient

Url = Annotated[str, typer.Option(envvar="TERAN_URL", help="The server's gRPC address, host:port.")]
Timeout = Annotated[
    float,
    typer.Option(envvar="TERAN_TIMEOUT", help="Seconds a request may take, retries included."),
]
Ca = Annotated[
    Path | None,
    typer.Option(envvar="TERAN_TLS_CA", help="Certificate authority; switches TLS on."),
]
Header = Annotated[
    list[str] | None, typer.Option(help="Metadata sent with every request, as key=value.")
]
Size = Annotated[
    str | None, typer.Option(help="The images' size, as 640x480, where no file has it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@contextmanager
def connected(
    url: str, timeout: float, ca: Path | None, header: list[str] | None, progress: bool = False
) -> Iterator[TeranClient]:
    """A client for a command's options, closed at the end."""
    headers = {}
    for entry in header or []:
        key, separator, value = entry.partition("=")
        if not separator:
            raise TeranInputError(f"--header is {entry!r}, expected key=value")
        headers[key] = value
    tls = Tls(root_certificates=ca) if ca else None
    with TeranClient(url, timeout=timeout, tls=tls, headers=headers, progress=progress) as client:
        yield client


def parse_size(text: str | None) -> tuple[float, float] | None:
    """Read WIDTHxHEIGHT."""
    if text is None:
        return None
    try:
        width, height = text.lower().split("x")
        return float(width), float(height)
    except ValueError as error:
        raise TeranInputError(f"--size is {text!r}, expected WIDTHxHEIGHT") from error
