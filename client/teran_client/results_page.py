"""Search results as one HTML page with the pictures and the regions that matched."""

import base64
import mimetypes
from contextlib import suppress
from html import escape
from pathlib import Path
from string import Template

from teran.errors import TeranInputError
from teran_client.results import Hit, SearchResult

_BOXES = 3
"""Matches drawn on a picture: those of the highest cosines."""
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } figure div { position: relative; } img { width: 100%; display: block; }
b.box { position: absolute; border: 2px solid #e4572e; font: 12px system-ui; color: #fff; }
b.box span { background: #e4572e; padding: 0 .3em; } small { color: #777; }
</style>
<h1>$title</h1><p><small>$summary</small></p>
<main>$figures</main></html>
""")


def write_page(path: Path, caption: str, result: SearchResult) -> None:
    """Write the page, with every picture that can be read from this machine inside it.

    Raises:
        TeranInputError: the file can't be written.
    """
    figures = "\n".join(_figure(rank, hit) for rank, hit in enumerate(result, start=1))
    summary = f"best {len(result)} of {result.items} images"
    page = _PAGE.substitute(title=escape(caption), summary=summary, figures=figures)
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TeranInputError(f"can't write {path}: {error}") from error


def _figure(rank: int, hit: Hit) -> str:
    best = sorted(hit.matches, key=lambda match: -float(match["cosine"]))[:_BOXES]
    boxes = "".join(
        '<b class="box" style="left:{:.1%};top:{:.1%};width:{:.1%};height:{:.1%}">'
        "<span>{}</span></b>".format(x1, y1, x2 - x1, y2 - y1, escape(str(match.get("word", ""))))
        for match in best
        for x1, y1, x2, y2 in [match.get("box", (0, 0, 0, 0))]
    )
    return (
        f"<figure><div>{_picture(hit)}{boxes}</div><figcaption>{rank}. {escape(hit.id)} "
        f"<small>{hit.score_per_word:.3f} per word</small></figcaption></figure>"
    )


def _picture(hit: Hit) -> str:
    if hit.uri is None:
        return "<p>no picture</p>"
    source, path = hit.uri, Path(hit.uri)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if "://" not in hit.uri and kind.startswith("image/"):
        with suppress(OSError):  # not ours to read, or no name that a file can have
            if path.is_file():
                source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<img src="{escape(source)}" alt="{escape(hit.id)}">'
