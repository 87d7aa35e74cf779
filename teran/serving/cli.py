"""`teran serve`, and what goes with it: `doctor`, `status`, `move-gallery`."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from teran.errors import TeranError
from teran.extras import needs
from teran.serving.logs import LogFormat, LogLevel, ServerLog
from teran.serving.options import (
    AdminKey,
    Gallery,
    GalleryApiKey,
    GalleryDevice,
    GalleryUrl,
    GrpcPort,
    HealthPort,
    Host,
    HttpPort,
    MetricsPort,
    Repository,
    Threads,
    TlsCertificate,
    TlsKey,
    WriteKey,
)


def register(app: typer.Typer) -> None:
    """Add the sub-commands to `app`."""
    app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    )(serve)
    app.command()(doctor)
    app.command()(status)
    app.command("move-gallery")(move_gallery)


def serve(
    context: typer.Context,
    repository: Repository,
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 8003,
    gallery: Gallery = None,
    gallery_flush: Annotated[
        bool,
        typer.Option(
            envvar="TERAN_GALLERY_FLUSH",
            help="Acknowledge a write only when it would survive a loss of power.",
        ),
    ] = False,
    gallery_url: GalleryUrl = None,
    gallery_api_key: GalleryApiKey = None,
    gallery_device: GalleryDevice = "cpu",
    gallery_precision: Annotated[
        str,
        typer.Option(envvar="TERAN_GALLERY_PRECISION", help="Of a GPU's copy: fp16, bf16 or fp8."),
    ] = "fp16",
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_name: Annotated[
        str, typer.Option(envvar="TERAN_TLS_NAME", help="A host name in the certificate.")
    ] = "localhost",
    admin_key: AdminKey = None,
    write_key: WriteKey = None,
    threads: Threads = 0,
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
    metrics: Annotated[
        bool,
        typer.Option(envvar="TERAN_METRICS", help="Record what the health port tells at /metrics."),
    ] = True,
    log_format: Annotated[
        LogFormat, typer.Option(envvar="TERAN_LOG_FORMAT", help="Text, or one JSON object a line.")
    ] = LogFormat.TEXT,
    log_level: Annotated[
        LogLevel,
        typer.Option(
            envvar="TERAN_LOG_LEVEL",
            help="Of the models: failures, at info refused requests too, at debug all of them.",
        ),
    ] = LogLevel.WARNING,
    trace_url: Annotated[
        str | None,
        typer.Option(
            envvar="TERAN_TRACE_URL",
            help="Where OpenTelemetry traces go, as http://collector:4318/v1/traces.",
        ),
    ] = None,
    trace_rate: Annotated[
        int,
        typer.Option(
            envvar="TERAN_TRACE_RATE",
            min=1,
            help="Trace one of so many requests, besides those that clients trace.",
        ),
    ] = 1000,
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
        gallery_url=gallery_url,
        gallery_api_key=gallery_api_key,
        gallery_device=gallery_device,
        gallery_precision=gallery_precision,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_name=tls_name,
        admin_key=admin_key,
        write_key=write_key,
        threads=threads,
        startup_timeout=startup_timeout,
        shutdown_timeout=shutdown_timeout,
        check_interval=check_interval,
        metrics=metrics,
        log_format=log_format,
        log_level=log_level,
        trace_url=trace_url,
        trace_rate=trace_rate,
        verbose=verbose,
        arguments=tuple(context.args),
    )
    try:
        status = Supervisor(settings).run()
    except TeranError as error:
        if log_format is LogFormat.TEXT:
            raise
        ServerLog(log_format).say(str(error), "ERROR")
        raise typer.Exit(1) from error
    raise typer.Exit(status if status >= 0 else 128 - status)


def doctor(
    repository: Repository = Path("repository"),
    host: Host = "127.0.0.1",
    grpc_port: GrpcPort = 8001,
    http_port: HttpPort = 8000,
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 8003,
    gallery: Gallery = None,
    gallery_url: GalleryUrl = None,
    gallery_device: GalleryDevice = "cpu",
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    admin_key: AdminKey = None,
    write_key: WriteKey = None,
    threads: Threads = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Check whether `teran serve` would start here now, and say what to do where it would not.

    Exit status 1 where it would not.

    Example: teran doctor build/repository --grpc-port 9001
    """
    with needs("server"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from teran.serving.doctor import Verdict, examine
        from teran.serving.settings import ServeSettings
    settings = ServeSettings(
        repository=repository,
        host=host,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        health_port=health_port,
        gallery=gallery,
        gallery_url=gallery_url,
        gallery_device=gallery_device,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        admin_key=admin_key,
        write_key=write_key,
        threads=threads,
    )
    findings = list(examine(settings))
    errors = sum(one.verdict is Verdict.ERROR for one in findings)
    if json_:
        typer.echo(json.dumps([asdict(one) for one in findings], indent=2))
        raise typer.Exit(int(errors > 0))
    colors = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.ERROR: "red"}
    table = Table(box=None, show_header=False)
    for one in findings:
        told = Text(one.message, overflow="fold")
        if one.advice:
            told.append(f"\n→ {one.advice}", style="bold")
        table.add_row(Text(one.verdict, style=colors[one.verdict]), one.subject, told)
    Console().print(table)
    warnings = sum(one.verdict is Verdict.WARNING for one in findings)
    typer.echo(f"errors: {errors}, warnings: {warnings}")
    raise typer.Exit(int(errors > 0))


def status(
    host: Annotated[str, typer.Option(envvar="TERAN_HOST", help="The server.")] = "127.0.0.1",
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 8003,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one interval, and end.")] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for every interval.")
    ] = False,
) -> None:
    """Show what a server does: its models, rates, times and galleries. Ctrl-C ends it.

    Exit status 1 where the server is not ready at the end.

    Example: teran status --once --json
    """
    with needs("server"):
        from rich.console import Console
        from rich.live import Live

        from teran.serving.status import Status, render, watch
    urls = [f"http://{host}:{port}/metrics" for port in (metrics_port, health_port)]
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
                told = asdict(shown) if isinstance(shown, Status) else {"error": str(shown)}
                typer.echo(json.dumps(told))
            else:
                live.update(render(shown), refresh=True)
            if once:
                break
    raise typer.Exit(0 if ready else 1)


def move_gallery(
    directory: Annotated[
        Path, typer.Argument(envvar="TERAN_GALLERY", help="Of galleries that no server uses now.")
    ],
    gallery_url: Annotated[
        str, typer.Option(envvar="TERAN_GALLERY_URL", help="The cluster, http://host:6333.")
    ],
    gallery: Annotated[str, typer.Option("--gallery", "-g", help="Its name.")] = "default",
    gallery_api_key: GalleryApiKey = None,
) -> None:
    """Copy a gallery from a directory into a Qdrant cluster; repeat it where it was interrupted.

    Example: teran move-gallery repository.gallery --gallery-url http://qdrant:6333
    """
    with needs("server"):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        from teran.gallery.cluster import connect
        from teran.gallery.migration import migrate
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"moving {gallery}", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        moved = migrate(directory, gallery, connect(gallery_url, gallery_api_key), show)
    typer.echo(
        f"{moved.items} items of {gallery} are in the cluster, {moved.copied} of them copied now; "
        "the directory was not changed"
    )
