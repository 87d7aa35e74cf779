"""Options that several commands of the server share."""

from pathlib import Path
from typing import Annotated

import typer

Repository = Annotated[
    Path, typer.Argument(envvar="TERAN_REPOSITORY", help="What `teran export` published.")
]
Host = Annotated[str, typer.Option(envvar="TERAN_HOST", help="Address to listen on.")]
GrpcPort = Annotated[
    int, typer.Option(envvar="TERAN_GRPC_PORT", min=0, max=65535, help="0: a free one.")
]
HttpPort = Annotated[
    int, typer.Option(envvar="TERAN_HTTP_PORT", min=0, max=65535, help="0: a free one.")
]
MetricsPort = Annotated[
    int,
    typer.Option(
        envvar="TERAN_METRICS_PORT", min=0, max=65535, help="Triton's metrics. 0: a free one."
    ),
]
HealthPort = Annotated[
    int,
    typer.Option(
        envvar="TERAN_HEALTH_PORT",
        min=0,
        max=65535,
        help="Truthful readiness and our metrics. 0: a free one.",
    ),
]
Gallery = Annotated[
    Path | None,
    typer.Option(
        envvar="TERAN_GALLERY", help="Directory of the galleries; by default REPOSITORY.gallery."
    ),
]
GalleryUrl = Annotated[
    str | None,
    typer.Option(
        envvar="TERAN_GALLERY_URL",
        help="A Qdrant cluster that holds the galleries, http://host:6333, not the directory.",
    ),
]
GalleryApiKey = Annotated[
    str | None, typer.Option(envvar="TERAN_GALLERY_API_KEY", help="The cluster's key.")
]
GalleryDevice = Annotated[
    str, typer.Option(envvar="TERAN_GALLERY_DEVICE", help="Where to scan: cpu, cuda or cuda:N.")
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option(envvar="TERAN_TLS_CERTIFICATE", help="PEM file; switches TLS on for gRPC."),
]
TlsKey = Annotated[
    Path | None, typer.Option(envvar="TERAN_TLS_KEY", help="The certificate's private key.")
]
AdminKey = Annotated[
    str | None,
    typer.Option(envvar="TERAN_ADMIN_KEY", help="Asked for by calls that load models."),
]
WriteKey = Annotated[
    str | None,
    typer.Option(envvar="TERAN_WRITE_KEY", help="Asked for by calls that change galleries."),
]
Threads = Annotated[
    int,
    typer.Option(envvar="TERAN_THREADS", min=0, help="For all engines together; 0: all cores."),
]
