"""`teran serve`."""

from pathlib import Path
from typing import Annotated

import typer

from teran.extras import needs


def register(app: typer.Typer) -> None:
    """Add the sub-command to `app`."""
    app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    )(serve)


def serve(
    context: typer.Context,
    repository: Annotated[
        Path, typer.Argument(envvar="TERAN_REPOSITORY", help="What `teran export` published.")
    ],
    host: Annotated[
        str, typer.Option(envvar="TERAN_HOST", help="Address to listen on.")
    ] = "127.0.0.1",
    grpc_port: Annotated[
        int, typer.Option(envvar="TERAN_GRPC_PORT", min=0, max=65535, help="0: a free one.")
    ] = 8001,
    http_port: Annotated[
        int, typer.Option(envvar="TERAN_HTTP_PORT", min=0, max=65535, help="0: a free one.")
    ] = 8000,
    metrics_port: Annotated[
        int, typer.Option(envvar="TERAN_METRICS_PORT", min=0, max=65535, help="0: a free one.")
    ] = 8002,
    health_port: Annotated[
        int,
        typer.Option(
            envvar="TERAN_HEALTH_PORT", min=0, max=65535, help="Truthful readiness. 0: a free one."
        ),
    ] = 8003,
    gallery: Annotated[
        Path | None,
        typer.Option(
            envvar="TERAN_GALLERY",
            help="Directory of the galleries; by default REPOSITORY.gallery.",
        ),
    ] = None,
    gallery_flush: Annotated[
        bool,
        typer.Option(
            envvar="TERAN_GALLERY_FLUSH",
            help="Acknowledge a write only when it would survive a loss of power.",
        ),
    ] = False,
    threads: Annotated[
        int,
        typer.Option(envvar="TERAN_THREADS", min=0, help="For all engines together; 0: all cores."),
    ] = 0,
    startup_timeout: Annotated[
        float, typer.Option(envvar="TERAN_STARTUP_TIMEOUT", help="Seconds until it must be ready.")
    ] = 300.0,
    shutdown_timeout: Annotated[
        float,
        typer.Option(envvar="TERAN_SHUTDOWN_TIMEOUT", help="Seconds requests get to finish."),
    ] = 30.0,
    check_interval: Annotated[
        float,
        typer.Option(envvar="TERAN_CHECK_INTERVAL", help="Seconds between canary inferences."),
    ] = 5.0,
    verbose: Annotated[
        bool, typer.Option(envvar="TERAN_VERBOSE", help="Show Triton's whole log.")
    ] = False,
) -> None:
    """Run Triton on a published repository and keep its models alive.

    Options after -- go to tritonserver as they are.

    Example: teran serve build/repository --grpc-port 9001 -- --log-verbose=1
    """
    with needs("server"):
        from teran.serving.settings import ServeSettings
        from teran.serving.supervisor import Supervisor
    settings = ServeSettings(
        repository=repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        health_port=health_port,
        gallery=gallery,
        gallery_flush=gallery_flush,
        threads=threads,
        startup_timeout=startup_timeout,
        shutdown_timeout=shutdown_timeout,
        check_interval=check_interval,
        verbose=verbose,
        arguments=tuple(context.args),
    )
    status = Supervisor(settings, lambda line: typer.echo(line)).run()
    raise typer.Exit(status if status >= 0 else 128 - status)
