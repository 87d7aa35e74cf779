"""`teran move-gallery`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from teran.contract import DEFAULT_GALLERY
from teran.errors import TeranInputError
from teran.extras import needs
from teran.runtime.settings import Cluster


def move_gallery(
    directory: Annotated[Path, Parameter(env_var="TERAN_GALLERY")],
    /,
    *,
    cluster: Cluster = Cluster(),
    gallery: Annotated[str, Parameter(name=["--gallery", "-g"])] = DEFAULT_GALLERY,
) -> None:
    """Copy a gallery to the Qdrant cluster at --gallery-url; repeat it where it was interrupted.

    Example: teran move-gallery repository.gallery --gallery-url http://qdrant:6333

    Args:
        directory: Of galleries that no server uses now.
        gallery: Its name.
    """
    if cluster.gallery_url is None:
        raise TeranInputError("--gallery-url is missing: the cluster to copy to, http://host:6333")
    with needs("server"):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress

        from teran.gallery.cluster.connection import connect
        from teran.gallery.migration import migrate
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"moving {gallery}", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        client = connect(cluster.gallery_url, cluster.gallery_api_key)
        moved = migrate(directory, gallery, client, show)
    print(
        f"{moved.items} items of {gallery} are in the cluster, {moved.copied} of them copied now; "
        "the directory was not changed"
    )
