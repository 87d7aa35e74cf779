"""The `teran` command; other packages add to it through the `teran.commands` entry points."""

import io
import json
import sys
import zipfile
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from teran.errors import TeranError, TeranInputError
from teran_client import gallery_cli
from teran_client.images import Floats, ImageRegions, read_directory
from teran_client.options import AsJson, Ca, Header, Size, Timeout, Url, connected, parse_size
from teran_client.results import Match

app = typer.Typer(
    name="teran",
    help="Fine-grained image-text retrieval with TERAN on NVIDIA Triton.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
encode = typer.Typer(help="Encode images or captions to embeddings.", no_args_is_help=True)
app.add_typer(encode, name="encode")
gallery_cli.register(app)


def _save(out: Path, arrays: dict[str, Floats]) -> None:
    """Write an .npz whose arrays may have any name, exactly at `out`, whole or not at all."""
    partial = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, array in arrays.items():
                data = io.BytesIO()
                np.lib.format.write_array(data, array, allow_pickle=False)
                archive.writestr(f"{name}.npy", data.getbuffer())
        partial.replace(out)
    except OSError as error:
        raise TeranInputError(f"can't write {out}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


@encode.command("images")
def encode_images(
    directory: Annotated[Path, typer.Argument(help="Holds <id>.npz and <id>.npy of every image.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    size: Size = None,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Encode a directory of region features to an .npz with one (R, E) array for each image.

    Example: teran encode images features/ --out embeddings.npz --size 640x480
    """
    images = list(read_directory(directory, parse_size(size)))
    with connected(url, timeout, ca, header, progress=True) as client:
        embeddings = client.encode_images(images)
    _save(out, {image.name: one for image, one in zip(images, embeddings, strict=True)})
    typer.echo(f"{len(images)} images written to {out}")


@encode.command("captions")
def encode_captions(
    captions: Annotated[Path, typer.Argument(help="A text file, one caption a line; - for stdin.")],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    verbatim: Annotated[bool, typer.Option(help="Add no full stop where one is missing.")] = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Encode captions to an .npz with one (W, E) array for each line, named by its number.

    Example: teran encode captions captions.txt --out words.npz
    """
    try:
        text = sys.stdin.read() if str(captions) == "-" else captions.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TeranInputError(f"can't read {captions}: {error}") from error
    lines = text.splitlines()
    with connected(url, timeout, ca, header, progress=True) as client:
        encoded = client.encode_captions(lines, verbatim=verbatim)
    _save(out, {str(i): one.word_embeddings for i, one in enumerate(encoded)})
    cut = sum(one.truncated for one in encoded)
    typer.echo(f"{len(lines)} captions written to {out}" + (f", {cut} of them cut" if cut else ""))


@app.command()
def match(
    features: Annotated[Path, typer.Argument(help="<id>.npz, with <id>.npy beside it.")],
    caption: Annotated[str, typer.Argument(help="The sentence.")],
    size: Size = None,
    json_: AsJson = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Score one image against one caption, and show which region each word matches.

    Example: teran match features/42.npz "two dogs on a beach" --size 640x480
    """
    image = ImageRegions.from_files(features, size=parse_size(size))
    with connected(url, timeout, ca, header) as client:
        result = client.match(image, caption)
    _print_match(result, json_)


def _print_match(result: Match, as_json: bool) -> None:
    best = result.best_regions()
    if as_json:
        words = [
            {"word": word, "region": region, "cosine": cosine} for word, region, cosine in best
        ]
        report = {"score": result.score, "score_per_word": result.score_per_word, "words": words}
        typer.echo(json.dumps({**report, "truncated": result.truncated}, indent=2))
        return
    table = Table("word", "best region", "cosine")
    for word, region, cosine in best:
        table.add_row(word, str(region), f"{cosine:.3f}")
    console = Console()
    console.print(f"score {result.score:.3f}, {result.score_per_word:.3f} per word")
    console.print(table)
    if result.truncated:
        console.print("the caption was longer than the model takes, and was cut")


@app.command()
def rank(
    caption: Annotated[str, typer.Argument(help="The sentence.")],
    directory: Annotated[Path, typer.Argument(help="Holds <id>.npz and <id>.npy of every image.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many images to show.")] = 10,
    size: Size = None,
    json_: AsJson = False,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Rank a directory of images for a sentence.

    Example: teran rank "two dogs on a beach" features/ -k 5 --size 640x480
    """
    images = list(read_directory(directory, parse_size(size)))
    with connected(url, timeout, ca, header) as client:
        ranking = client.rank(caption, images, k)
    if json_:
        typer.echo(json.dumps([asdict(entry) for entry in ranking], indent=2))
        return
    table = Table("rank", "image", "score", "per word")
    for position, entry in enumerate(ranking, start=1):
        row = (str(position), entry.name, f"{entry.score:.3f}", f"{entry.score_per_word:.3f}")
        table.add_row(*row)
    Console().print(table)


@app.command()
def profile(
    caption: Annotated[str, typer.Argument(help="A sentence.")] = "two dogs run on a beach",
    calls: Annotated[int, typer.Option(min=1, help="How many calls to make.")] = 50,
    url: Url = "localhost:8001",
    timeout: Timeout = 60.0,
    ca: Ca = None,
    header: Header = None,
) -> None:
    """Show where the time of encoding a caption goes: client, network, queue, compute.

    Example: teran profile "a red ball left of a blue box" --calls 200
    """
    with connected(url, timeout, ca, header) as client:
        typer.echo(str(client.profile(caption, calls=calls)))


def main(arguments: list[str] | None = None) -> None:
    """Run the command: exit status 0, 1 for a failure, 2 for wrong input, 130 for Ctrl-C."""
    for entry in entry_points(group="teran.commands"):
        register: Any = entry.load()
        register(app)
    try:
        app(args=arguments)
    except TeranError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, TeranInputError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
