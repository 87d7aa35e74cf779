"""`teran serve`."""

from pathlib import Path
from typing import Annotated

import typer

from teran.extras import needs
from teran.serving.logs import LogFormat, LogLevel


def register(app: typer.Typer) -> None:
    """Add the sub-commands to `app`."""
    app.command(
        context_settings={"allow_extra_args": True, "ignore_unknown_options": False},
    )(serve)
    app.command("move-gallery")(move_gallery)


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
    gallery_url: Annotated[
        str | None,
        typer.Option(
            envvar="TERAN_GALLERY_URL",
            help="A Qdrant cluster that holds the galleries, http://host:6333, not the directory.",
        ),
    ] = None,
    gallery_api_key: Annotated[
        str | None, typer.Option(envvar="TERAN_GALLERY_API_KEY", help="The cluster's key.")
    ] = None,
    gallery_device: Annotated[
        str,
        typer.Option(envvar="TERAN_GALLERY_DEVICE", help="Where to scan: cpu, cuda or cuda:N."),
    ] = "cpu",
    gallery_precision: Annotated[
        str,
        typer.Option(envvar="TERAN_GALLERY_PRECISION", help="Of a GPU's copy: fp16, bf16 or fp8."),
    ] = "fp16",
    tls_certificate: Annotated[
        Path | None,
        typer.Option(envvar="TERAN_TLS_CERTIFICATE", help="PEM file; switches TLS on for gRPC."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="TERAN_TLS_KEY", help="The certificate's private key.")
    ] = None,
    tls_name: Annotated[
        str, typer.Option(envvar="TERAN_TLS_NAME", help="A host name in the certificate.")
    ] = "localhost",
    admin_key: Annotated[
        str | None,
        typer.Option(envvar="TERAN_ADMIN_KEY", help="Asked for by calls that load models."),
    ] = None,
    write_key: Annotated[
        str | None,
        typer.Option(envvar="TERAN_WRITE_KEY", help="Asked for by calls that change galleries."),
    ] = None,
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
    status = Supervisor(settings).run()
    raise typer.Exit(status if status >= 0 else 128 - status)


def move_gallery(
    directory: Annotated[
        Path, typer.Argument(envvar="TERAN_GALLERY", help="Of galleries that no server uses now.")
    ],
    gallery_url: Annotated[
        str, typer.Option(envvar="TERAN_GALLERY_URL", help="The cluster, http://host:6333.")
    ],
    gallery: Annotated[str, typer.Option("--gallery", "-g", help="Its name.")] = "default",
    gallery_api_key: Annotated[
        str | None, typer.Option(envvar="TERAN_GALLERY_API_KEY", help="The cluster's key.")
    ] = None,
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
