"""`teran index`, `teran search` and `teran gallery`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from teran.errors import TeranInputError
from teran_client.gallery import DEFAULT, Entry
from teran_client.images import ImageRegions, read_sizes
from teran_client.options import AsJson, Ca, Header, Size, Timeout, Url, connected, parse_size
from teran_client.results import SearchResult
from teran_client.results_page import write_page
from teran_client.sync import TeranClient

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")
_LISTED = 20
gallery_app = typer.Typer(help="Look after the galleries of a server.", no_args_is_help=True)

Gallery = Annotated[
    str, typer.Option("--gallery", "-g", envvar="TERAN_GALLERY_NAME", help="A name or an alias.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(index)
    app.command()(search)
    app.add_typer(gallery_app, name="gallery")


def index(
    directory: Annotated[Path, typer.Argument(help="Holds <id>.npz and <id>.npy of every image.")],
    gallery: Gallery = DEFAULT,
    again: Annotated[
        bool, typer.Option(help="Index images that the gallery has already, too.")
    ] = False,
    size: Size = None,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Index a directory of region features; what is indexed already is skipped.

    A picture <id>.jpg or <id>.png beside the features becomes the image's location, and
    metadata.json ({id: {...}}) what searches can filter by. Files that can't be used are listed at
    the end, and the exit status is 1.

    Example: teran index features/ --gallery holidays --size 640x480
    """
    paths = sorted(directory.glob("*.npz"))
    if not paths:
        raise TeranInputError(f"{directory} holds no .npz files")
    metadata = _metadata(directory)
    bad: list[str] = []
    with connected(url, timeout, ca, header) as client:
        todo = paths if again else _missing(client, paths, gallery)
        entries = _entries(todo, parse_size(size), read_sizes(directory), metadata, bad)
        done = 0
        with _progress() as progress:
            task = progress.add_task("indexing", total=len(todo))
            for _ in client.index(entries, gallery=gallery):
                done += 1
                progress.update(task, completed=done + len(bad))
    skipped = len(paths) - len(todo)
    typer.echo(
        f"{done} images indexed in {gallery}" + (f", {skipped} were there" if skipped else "")
    )
    for line in bad[:_LISTED]:
        typer.echo(f"not indexed: {line}", err=True)
    if len(bad) > _LISTED:
        typer.echo(f"and {len(bad) - _LISTED} more", err=True)
    if bad:
        raise typer.Exit(1)


def search(
    caption: Annotated[str, typer.Argument(help="The sentence.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many images.")] = 10,
    gallery: Gallery = DEFAULT,
    where: Annotated[
        str | None, typer.Option(help='A filter as JSON: {"label": "dog", "year": {"gte": 2000}}.')
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Leave out what scores less per word.")
    ] = None,
    explain: Annotated[bool, typer.Option(help="Show the region each word matches.")] = False,
    exact: Annotated[bool, typer.Option(help="Insist on a proven exact result.")] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with the pictures instead.")
    ] = None,
    json_: AsJson = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Find the images that fit a sentence best.

    Example: teran search "two dogs on a beach" -k 5 --where '{"year": {"gte": 2000}}'
    """
    condition = _where(where)
    with connected(url, timeout, ca, header) as client:
        result = client.search(
            caption,
            k,
            gallery=gallery,
            where=condition,
            min_score_per_word=min_score,
            explain=explain or html is not None,
            exact=exact,
        )
    if html is not None:
        write_page(html, caption, result)
        typer.echo(f"{len(result)} results written to {html}")
    elif json_:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        _print(result, explain)


def _print(result: SearchResult, explain: bool) -> None:
    columns = ["rank", "id", "score", "per word", "location"]
    table = Table(*columns, *(["words and regions"] if explain else []))
    for rank, hit in enumerate(result, start=1):
        words = ", ".join(
            f"{match.get('word', '')} {match['region']} ({match['cosine']:.2f})"
            for match in hit.matches
        )
        cells = (str(rank), hit.id, f"{hit.score:.3f}", f"{hit.score_per_word:.3f}", hit.uri or "")
        table.add_row(*cells, *([words] if explain else []))
    console = Console()
    console.print(table)
    console.print(
        f"best of {result.items} images, {result.pruned:.0%} of them never scored"
        if result.pruned
        else f"best of {result.items} images"
    )
    if result.truncated:
        console.print("the sentence was longer than the model takes, and was cut")


@gallery_app.command()
def info(
    gallery: Annotated[str | None, typer.Argument(help="One; by default all of them.")] = None,
    json_: AsJson = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Show the galleries: kind, items, memory, disk and aliases.

    Example: teran gallery info holidays
    """
    with connected(url, timeout, ca, header) as client:
        told = client.gallery_info(gallery)
    if json_:
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table("gallery", "kind", "items", "memory", "disk", "model")
    for one in told.get("galleries", [told]):
        sizes = (one.get(f"bytes_{where}") for where in _PLACES)  # a cluster tells none
        memory, disk = ("" if size is None else f"{size / 2**20:.0f} MiB" for size in sizes)
        fingerprint = one["model"]["fingerprint"][:12]
        table.add_row(one["name"], one["kind"], str(one["items"]), memory, disk, fingerprint)
    console = Console()
    console.print(table)
    for alias, name in told.get("aliases", {}).items():
        console.print(f"{alias} is {name}")
    for reason in told.get("unusable", {}).values():
        console.print(reason)


_PLACES = ("in_memory", "on_disk")


@gallery_app.command()
def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Items to remove.")] = None,
    gallery: Gallery = DEFAULT,
    everything: Annotated[bool, typer.Option(help="Remove the gallery itself.")] = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Remove items from a gallery, or the whole of it.

    Example: teran gallery delete 42 43 --gallery holidays
    """
    if everything == bool(ids):
        raise TeranInputError("pass the ids to remove, or --everything for the whole gallery")
    with connected(url, timeout, ca, header) as client:
        if everything:
            client.drop_gallery(gallery)
            typer.echo(f"{gallery} removed")
        else:
            assert ids is not None
            typer.echo(f"{client.delete(ids, gallery=gallery)} of {len(ids)} items removed")


@gallery_app.command()
def snapshot(
    gallery: Gallery = DEFAULT,
    url: Url = "localhost:8001",
    timeout: Timeout = 600.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Write a gallery to one file on the server.

    Example: teran gallery snapshot --gallery holidays
    """
    with connected(url, timeout, ca, header) as client:
        typer.echo(client.snapshot(gallery))


@gallery_app.command()
def restore(
    snapshot: Annotated[str, typer.Argument(help="The file's name, as `snapshot` printed it.")],
    gallery: Annotated[str, typer.Argument(help="The name of the new gallery.")],
    url: Url = "localhost:8001",
    timeout: Timeout = 600.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Make a new gallery from a snapshot on the server.

    Example: teran gallery restore holidays-20260101T120000000000.tar holidays-again
    """
    with connected(url, timeout, ca, header) as client:
        told = client.restore(snapshot, gallery)
    typer.echo(f"{told['items']} items restored to {gallery}")


@gallery_app.command()
def alias(
    alias: Annotated[str, typer.Argument(help="The name searches use.")],
    gallery: Annotated[str, typer.Argument(help="The gallery it means from now on.")],
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Point an alias at a gallery, for all clients at once.

    Example: teran gallery alias live holidays-2026
    """
    with connected(url, timeout, ca, header) as client:
        client.set_alias(alias, gallery)
    typer.echo(f"{alias} is {gallery}")


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f}/s")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _where(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        where = json.loads(text)
    except ValueError as error:
        raise TeranInputError(f"--where is not JSON: {error}") from error
    if not isinstance(where, dict):
        raise TeranInputError(f"--where is {text!r}, expected an object")
    return where


def _metadata(directory: Path) -> dict[str, Any]:
    path = directory / "metadata.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TeranInputError(f"{path} can't be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(x, dict) for x in content.values()):
        raise TeranInputError(f"{path} must hold an object for each id")
    return content


def _missing(client: TeranClient, paths: list[Path], gallery: str) -> list[Path]:
    known = client.known([path.stem for path in paths], gallery=gallery)
    return [path for path, there in zip(paths, known, strict=True) if not there]


def _entries(
    paths: list[Path],
    size: tuple[float, float] | None,
    sizes: dict[str, tuple[float, float]],
    metadata: dict[str, Any],
    bad: list[str],
) -> Iterator[Entry]:
    """Every image that can be read; the others go to `bad`."""
    for path in paths:
        try:
            image = ImageRegions.from_files(path, size=sizes.get(path.stem, size))
        except TeranInputError as error:
            bad.append(str(error))
            continue
        pictures = (path.with_suffix(suffix) for suffix in _PICTURES)
        picture = next((str(one.absolute()) for one in pictures if one.is_file()), None)
        yield Entry(image, path.stem, picture, metadata.get(path.stem, {}))
