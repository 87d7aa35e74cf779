"""The `teran` command; other packages add to it through the `teran.commands` entry points."""

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cyclopts import App, Parameter

from teran.commandline import AsJson, Positive, new_app, run
from teran.errors import TeranInputError
from teran_client import gallery_cli
from teran_client.images import Floats, ImageRegions, read_directory
from teran_client.options import Connection, Size, parse_size
from teran_client.photos import Photo, find_photos
from teran_client.results import Match
from teran_client.table import show_table

_FEATURES = ".npz"
app = new_app()
encode = App(name="encode", help="Encode images or captions to embeddings.")
app.command(encode)
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


@encode.command(name="images")
def encode_images(
    directory: Path, /, *, out: Path, size: Size = None, connection: Connection = Connection()
) -> None:
    """Encode a directory of images to an .npz with one (R, E) array for each.

    Example: teran encode images features/ --out embeddings.npz --size 640x480

    Args:
        directory: Holds `<id>.npz` and `<id>.npy` of every image, or photos.
        out: The .npz file to write.
    """
    images = _images(directory, size)
    with connection.client(progress=True) as client:
        embeddings = client.encode_images(images)
    _save(out, {image.name: one for image, one in zip(images, embeddings, strict=True)})
    print(f"{len(images)} images written to {out}")


@encode.command(name="captions")
def encode_captions(
    captions: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    out: Path,
    verbatim: bool = False,
    connection: Connection = Connection(),
) -> None:
    """Encode captions to an .npz with one (W, E) array for each line, named by its number.

    Example: teran encode captions captions.txt --out words.npz

    Args:
        captions: A text file, one caption a line; - for stdin.
        out: The .npz file to write.
        verbatim: Add no full stop where one is missing.
    """
    try:
        text = sys.stdin.read() if str(captions) == "-" else captions.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TeranInputError(f"can't read {captions}: {error}") from error
    lines = text.splitlines()
    with connection.client(progress=True) as client:
        encoded = client.encode_captions(lines, verbatim=verbatim)
    _save(out, {str(i): one.word_embeddings for i, one in enumerate(encoded)})
    cut = sum(one.truncated for one in encoded)
    print(f"{len(lines)} captions written to {out}" + (f", {cut} of them cut" if cut else ""))


@app.command
def match(
    image: Path,
    caption: str,
    /,
    *,
    size: Size = None,
    json_: AsJson = False,
    connection: Connection = Connection(),
) -> None:
    """Score one image against one caption, and show which region each word matches.

    Example: teran match photos/beach.jpg "two dogs on a beach"
    Example: teran match features/42.npz "two dogs on a beach" --size 640x480

    Args:
        image: A photo, or `<id>.npz` with `<id>.npy` beside it.
        caption: The sentence.
    """
    content = (
        ImageRegions.from_files(image, fallback=parse_size(size))
        if image.suffix == _FEATURES
        else Photo.of(image)
    )
    with connection.client() as client:
        result = client.match(content, caption)
    _print_match(result, json_)


def _print_match(result: Match, as_json: bool) -> None:
    best = result.best_regions()
    if as_json:
        words = [
            {"word": word, "region": region, "cosine": cosine} for word, region, cosine in best
        ]
        report = {"score": result.score, "score_per_word": result.score_per_word, "words": words}
        print(json.dumps({**report, "truncated": result.truncated}, indent=2))
        return
    print(f"score {result.score:.3f}, {result.score_per_word:.3f} per word")
    show_table(
        ("word", "best region", "cosine"),
        [(word, str(region), f"{cosine:.3f}") for word, region, cosine in best],
    )
    if result.truncated:
        print("the caption was longer than the model takes, and was cut", file=sys.stderr)


@app.command
def rank(
    caption: str,
    directory: Path,
    /,
    *,
    k: Annotated[Positive, Parameter(name="-k")] = 10,
    size: Size = None,
    json_: AsJson = False,
    connection: Connection = Connection(),
) -> None:
    """Rank a directory of images for a sentence.

    Example: teran rank "two dogs on a beach" features/ -k 5 --size 640x480

    Args:
        caption: The sentence.
        directory: Holds `<id>.npz` and `<id>.npy` of every image, or photos.
        k: How many images to show, at least 1.
    """
    images = _images(directory, size)
    with connection.client() as client:
        ranking = client.rank(caption, images, k)
    if json_:
        print(json.dumps([asdict(entry) for entry in ranking], indent=2))
        return
    show_table(
        ("rank", "image", "score", "per word"),
        [
            (str(position), entry.name, f"{entry.score:.3f}", f"{entry.score_per_word:.3f}")
            for position, entry in enumerate(ranking, start=1)
        ],
    )


def _images(directory: Path, size: str | None) -> list[ImageRegions | Photo]:
    """The images of a directory: by their features, where there are any, else its photos."""
    if any(directory.glob(f"*{_FEATURES}")):
        return list(read_directory(directory, parse_size(size)))
    return [
        Photo(path, path.name)
        for path in find_photos(directory, wanted="features (.npz) and no photos")
    ]


@app.command
def profile(
    caption: str = "two dogs run on a beach",
    /,
    *,
    photo: Path | None = None,
    calls: Positive = 50,
    connection: Connection = Connection(),
) -> None:
    """Show where the time of encoding a caption goes: client, network, queue, compute.

    Example: teran profile "a red ball left of a blue box" --calls 200
    Example: teran profile "a red ball" --photo ball.jpg --calls 10

    Args:
        caption: A sentence.
        photo: A photo that it is matched with; the time is that of both.
        calls: How many calls to make.
    """
    with connection.client() as client:
        print(client.profile(caption, photo, calls=calls))


def whole_app() -> App:
    """The command with what other packages add to it."""
    for entry in entry_points(group="teran.commands"):
        register: Any = entry.load()
        register(app)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    run(whole_app(), arguments)


if __name__ == "__main__":
    main()
