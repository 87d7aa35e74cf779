"""`teran doctor`: would `teran serve` start here?"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from teran.commandline import AsJson
from teran.extras import needs
from teran.supervisor.settings import ServeSettings


def doctor(
    repository: Annotated[Path, Parameter(env_var="TERAN_REPOSITORY")] = ServeSettings.repository,
    /,
    *,
    settings: ServeSettings = ServeSettings(),
    json_: AsJson = False,
) -> int:
    """Check whether `teran serve` would start here now, and say what to do where it would not.

    Exit status 1 where it would not.

    Example: teran doctor build/repository --grpc-port 9001

    Args:
        repository: What `teran export` published.
    """
    with needs("server"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from teran.cli import gallery_checks
        from teran.supervisor.doctor import Verdict, examine
    settings = replace(settings, repository=repository)
    findings = list(examine(settings, *gallery_checks.CHECKS))
    errors = sum(one.verdict is Verdict.ERROR for one in findings)
    if json_:
        print(json.dumps([asdict(one) for one in findings], indent=2))
        return int(errors > 0)
    colors = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.ERROR: "red"}
    table = Table(box=None, show_header=False)
    for one in findings:
        message = Text(one.message, overflow="fold")
        if one.advice:
            message.append(f"\n→ {one.advice}", style="bold")
        table.add_row(Text(one.verdict, style=colors[one.verdict]), one.subject, message)
    Console().print(table)
    warnings = sum(one.verdict is Verdict.WARNING for one in findings)
    print(f"errors: {errors}, warnings: {warnings}")
    return int(errors > 0)
