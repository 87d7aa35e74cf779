"""`teran index`, `teran search` and `teran gallery`."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
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
from rich.text import Text

from teran.commandline import AsJson, printable
from teran.contract import DEFAULT_GALLERY, DIGEST, MAX_RESULTS, PHOTO_SUFFIXES, check_id, is_id
from teran.errors import TeranInputError
from teran_client.entry import Entry
from teran_client.images import ImageRegions, picture_beside, read_sizes
from teran_client.options import Connection, PatientConnection, Size, parse_size
from teran_client.photos import Photo, find_photos
from teran_client.results import SearchResult
from teran_client.results_page import write_page
from teran_client.sync import TeranClient
from teran_client.table import show_table

_LISTED = 20
gallery_app = App(name="gallery", help="Look after the galleries of a server.")

GalleryName = Annotated[
    str,
    Parameter(name=["--gallery", "-g"], env_var="TERAN_GALLERY_NAME", help="A name or an alias."),
]


def register(app: App) -> None:
    """Add the commands to `app`."""
    app.command(index)
    app.command(search)
    app.command(gallery_app)


def index(
    directory: Path,
    /,
    *,
    gallery: GalleryName = DEFAULT_GALLERY,
    recursive: Annotated[bool, Parameter(name=["--recursive", "-r"])] = False,
    again: bool = False,
    size: Size = None,
    connection: PatientConnection = PatientConnection(),
) -> int:
    """Index a directory of photos, or of region features; what is indexed already is skipped.

    Photos (JPEG, PNG, WebP) are called by their paths in the directory. One that has changed is
    indexed anew; width, height and the day it was taken become metadata. Features are `<id>.npz`
    and `<id>.npy`; a picture `<id>.jpg` beside them becomes the image's location. metadata.json
    ({id: {...}}) holds what searches can filter by, too. Files that can't be used are listed at the
    end, and the exit status is 1. Whatever ends it, the same command goes on from there.

    Example: teran index photos/ --recursive
    Example: teran index features/ --gallery holidays --size 640x480

    Args:
        directory: Holds the photos, or the features.
        recursive: Look for photos in the directories below, too.
        again: Index images that the gallery has already, too.
    """
    metadata, bad = _metadata(directory), Refusals()
    features = sorted(directory.glob("*.npz"))
    with connection.client() as client:
        if features:
            found = len(features)
            todo = features if again else _missing(client, features, gallery)
            entries = _entries(todo, parse_size(size), read_sizes(directory), metadata, bad)
        else:
            photos = find_photos(
                directory, recursive=recursive, wanted="features (.npz) and no photos"
            )
            found = len(photos)
            digests = {} if again else _digests(client, directory, photos, gallery)
            todo = photos
            entries = _photo_entries(directory, photos, digests, metadata, bad)
        done = 0
        with _progress() as progress:
            task = progress.add_task("indexing", total=len(todo), done=0)
            bad.on_change = lambda: progress.update(task, completed=done + bad.count, done=done)
            for _ in client.index(entries, gallery=gallery, refused=bad.add):
                done += 1
                bad.on_change()
    skipped = found - done - len(bad.lines)
    print(f"{done} images indexed in {gallery}" + (f", {skipped} were there" if skipped else ""))
    for line in bad.lines[:_LISTED]:
        print(f"not indexed: {printable(line)}", file=sys.stderr)
    if len(bad.lines) > _LISTED:
        print(f"and {len(bad.lines) - _LISTED} more", file=sys.stderr)
    return int(bool(bad.lines))


def search(
    query: str,
    /,
    *,
    k: Annotated[int, Parameter(name="-k", validator=Number(gte=1, lte=MAX_RESULTS))] = 10,
    gallery: GalleryName = DEFAULT_GALLERY,
    where: str | None = None,
    min_score: float | None = None,
    explain: bool = False,
    exact: bool = False,
    html: Path | None = None,
    json_: AsJson = False,
    connection: Connection = Connection(),
) -> None:
    """Find the images that fit a sentence best, or the sentences that fit a photo.

    Example: teran search "two dogs on a beach" -k 5 --where '{"year": {"gte": 2000}}'
    Example: teran search beach.jpg --gallery sentences

    Args:
        query: The sentence, or the path of a photo.
        k: How many images, 1 to 1000.
        where: A filter as JSON: {"label": "dog", "year": {"gte": 2000}}.
        min_score: Leave out what scores less per word.
        explain: Show the region each word matches.
        exact: Insist on a proven exact result.
        html: Write a page with the pictures instead.
    """
    condition = _where(where)
    with connection.client() as client:
        result = client.search(
            Path(query) if _is_photo(query) else query,
            k,
            gallery=gallery,
            where=condition,
            min_score_per_word=min_score,
            explain=explain or html is not None,
            exact=exact,
        )
    if html is not None:
        write_page(html, query, result)
        print(f"{len(result)} results written to {html}")
    elif json_:
        print(json.dumps(asdict(result), indent=2))
    else:
        _print(result, explain)


def _is_photo(query: str) -> bool:
    path = Path(query)
    return path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()


def _print(result: SearchResult, explain: bool) -> None:
    columns = ["rank", "id", "score", "per word", "location"]
    rows = []
    for rank, hit in enumerate(result, start=1):
        words = ", ".join(
            f"{match.get('word', '')} {match['region']} ({match['cosine']:.2f})"
            for match in hit.matches
        )
        scores = (f"{hit.score:.3f}", f"{hit.score_per_word:.3f}")
        cells = (str(rank), hit.id, *scores, hit.uri or hit.text or "")
        rows.append((*cells, words) if explain else cells)
    show_table([*columns, *(["words and regions"] if explain else [])], rows)
    notes = Console(stderr=not sys.stdout.isatty())
    notes.print(
        f"best of {result.items} items, {result.pruned:.0%} of them never scored"
        if result.pruned
        else f"best of {result.items} items"
    )
    if result.truncated:
        notes.print("the sentence was longer than the model takes, and was cut")


@gallery_app.command
def info(
    gallery: str | None = None, /, *, json_: AsJson = False, connection: Connection = Connection()
) -> None:
    """Show the galleries: kind, items, memory, disk and aliases.

    Example: teran gallery info holidays

    Args:
        gallery: One; by default all of them.
    """
    with connection.client() as client:
        report = client.gallery_info(gallery)
    if json_:
        print(json.dumps(report, indent=2))
        return
    rows = []
    for one in report.get("galleries", [report]):
        sizes = one.get("bytes_in_memory"), one.get("bytes_on_disk")  # a cluster has none
        memory, disk = ("" if size is None else f"{size / 2**20:.0f} MiB" for size in sizes)
        fingerprint = one["model"]["fingerprint"][:12]
        rows.append((one["name"], one["kind"], str(one["items"]), memory, disk, fingerprint))
    show_table(("gallery", "kind", "items", "memory", "disk", "model"), rows)
    for alias, name in report.get("aliases", {}).items():
        print(f"{alias} is {name}")
    for name, reason in report.get("unusable", {}).items():
        print(f"{printable(name)} can't be used: {printable(reason)}")


@gallery_app.command
def delete(
    *ids: str,
    gallery: GalleryName = DEFAULT_GALLERY,
    everything: bool = False,
    connection: Connection = Connection(),
) -> None:
    """Remove items from a gallery, or the whole of it.

    Example: teran gallery delete 42 43 --gallery holidays

    Args:
        ids: Items to remove.
        everything: Remove the gallery itself.
    """
    if everything == bool(ids):
        raise TeranInputError("pass the ids to remove, or --everything for the whole gallery")
    with connection.client() as client:
        if everything:
            client.drop_gallery(gallery)
            print(f"{gallery} removed")
        else:
            print(f"{client.delete(ids, gallery=gallery)} of {len(ids)} items removed")


@gallery_app.command
def snapshot(
    *, gallery: GalleryName = DEFAULT_GALLERY, connection: PatientConnection = PatientConnection()
) -> None:
    """Write a gallery to one file on the server.

    Example: teran gallery snapshot --gallery holidays
    """
    with connection.client() as client:
        print(client.snapshot(gallery))


@gallery_app.command
def restore(
    snapshot: str, gallery: str, /, *, connection: PatientConnection = PatientConnection()
) -> None:
    """Make a new gallery from a snapshot on the server.

    Example: teran gallery restore holidays-20260101T120000000000.tar holidays-again

    Args:
        snapshot: The file's name, as `snapshot` printed it.
        gallery: The name of the new gallery.
    """
    with connection.client() as client:
        report = client.restore(snapshot, gallery)
    print(f"{report['items']} items restored to {gallery}")


@gallery_app.command
def alias(alias: str, gallery: str, /, *, connection: Connection = Connection()) -> None:
    """Point an alias at a gallery, for all clients at once.

    Example: teran gallery alias live holidays-2026

    Args:
        alias: The name searches use.
        gallery: The gallery it means from now on.
    """
    with connection.client() as client:
        client.set_alias(alias, gallery)
    print(f"{alias} is {gallery}")


@gallery_app.command
def unalias(alias: str, /, *, connection: Connection = Connection()) -> None:
    """Remove an alias; the gallery it points at stays.

    Example: teran gallery unalias live

    Args:
        alias: The name searches used.
    """
    with connection.client() as client:
        client.remove_alias(alias)
    print(f"alias {printable(alias)} removed")


@dataclass
class Refusals:
    """Files that can't be used, and why; and how many need not be sent."""

    lines: list[str] = field(default_factory=list)
    skipped: int = 0
    on_change: Callable[[], None] = lambda: None

    @property
    def count(self) -> int:
        """Of all of them."""
        return self.skipped + len(self.lines)

    def add(self, identifier: str, error: TeranInputError) -> None:
        """Take note of one that can't be used."""
        self.lines.append(f"{identifier}: {error}")
        self.on_change()

    def skip(self) -> None:
        """Take note of one that need not be sent."""
        self.skipped += 1
        self.on_change()


class _Rate(ProgressColumn):
    """Images a second, since the beginning; what was there already does not count."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.fields['done'] / task.elapsed:.1f}/s" if task.elapsed else "")


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
    ids = [path.stem for path in paths if is_id(path.stem)]
    known = client.known(ids, gallery=gallery)
    there = {identifier for identifier, is_there in zip(ids, known, strict=True) if is_there}
    return [path for path in paths if path.stem not in there]


def _digests(
    client: TeranClient, directory: Path, photos: list[Path], gallery: str
) -> dict[str, str]:
    """What the photos that a gallery has were known by when they were indexed."""
    ids = [name for one in photos if is_id(name := one.relative_to(directory).as_posix())]
    there = client.digests(ids, gallery=gallery)
    return {name: digest for name, digest in zip(ids, there, strict=True) if digest}


def _photo_entries(
    directory: Path,
    photos: list[Path],
    digests: dict[str, str],
    metadata: dict[str, Any],
    bad: Refusals,
) -> Iterator[Entry]:
    """Every photo that is new or has changed."""
    for path in photos:
        name = path.relative_to(directory).as_posix()
        try:
            check_id(name)
            entry = Entry.of_file(Photo(path, name), metadata.get(name))
        except TeranInputError as error:
            bad.add(printable(name), error)
            continue
        if digests.get(name) == entry.metadata[DIGEST]:
            bad.skip()
        else:
            yield entry


def _entries(
    paths: list[Path],
    size: tuple[float, float] | None,
    sizes: dict[str, tuple[float, float]],
    metadata: dict[str, Any],
    bad: Refusals,
) -> Iterator[Entry]:
    """Every image that can be read; the others go to `bad`."""
    for path in paths:
        try:
            check_id(path.stem)
            image = ImageRegions.from_files(path, size=sizes.get(path.stem), fallback=size)
        except TeranInputError as error:
            bad.lines.append(str(error))
            bad.on_change()
            continue
        picture = picture_beside(path)
        uri = str(picture.absolute()) if picture else None
        yield Entry(image, path.stem, uri, metadata.get(path.stem, {}))
