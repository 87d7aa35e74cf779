"""`teran serve`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from teran.errors import TeranError
from teran.extras import needs
from teran.supervisor.logs import LogFormat, ServerLog
from teran.supervisor.settings import ServeSettings


def serve(
    repository: Annotated[Path, Parameter(env_var="TERAN_REPOSITORY")],
    /,
    *arguments: Annotated[str, Parameter(show=False)],
    settings: ServeSettings = ServeSettings(),
) -> int:
    """Run Triton on a published repository and keep its models alive.

    Options after -- go to tritonserver as they are.

    Example: teran serve build/repository --grpc-port 9001 -- --log-verbose=1

    Args:
        repository: What `teran export` published.
    """
    with needs("server"):
        from teran.supervisor.supervisor import Supervisor
    settings = replace(settings, repository=repository, arguments=arguments)
    try:
        status = Supervisor(settings).run()
    except TeranError as error:
        if settings.log_format is LogFormat.TEXT:
            raise
        ServerLog(settings.log_format).say(str(error), "ERROR")
        return 1
    return status if status >= 0 else 128 - status
