"""`teran status`."""

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from teran.extras import needs
from teran.supervisor.settings import Listening


def status(
    *,
    server: Listening = Listening(),
    interval: Annotated[float, Parameter(validator=Number(gte=0.1))] = 2.0,
    once: Annotated[bool, Parameter(negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Show what a server does: its models, rates, times and galleries. Ctrl-C ends it.

    Exit status 1 where the server is not ready at the end.

    Example: teran status --once --json

    Args:
        interval: Seconds between two readings, at least 0.1.
        once: Show one interval, and end.
        json_: Print a line of JSON for every interval.
    """
    with needs("server"):
        from rich.console import Console
        from rich.live import Live

        from teran.supervisor.status import Status, render, watch
    ports = (server.metrics_port, server.health_port)
    urls = [f"http://{server.host}:{port}/metrics" for port in ports]
    ready = False
    with (
        Live(console=Console(quiet=json_), auto_refresh=False) as live,
        suppress(KeyboardInterrupt),
    ):
        for shown in watch(*urls, interval=interval):
            if not isinstance(shown, Status) and once:
                raise shown
            ready = isinstance(shown, Status) and shown.ready
            if json_:
                fields = asdict(shown) if isinstance(shown, Status) else {"error": str(shown)}
                print(json.dumps(fields))
            else:
                live.update(render(shown), refresh=True)
            if once:
                break
    return 0 if ready else 1
