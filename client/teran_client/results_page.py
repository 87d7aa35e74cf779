"""Search results as one HTML page with the pictures and the regions that matched."""

import base64
import io
import mimetypes
from html import escape
from pathlib import Path
from string import Template

from PIL import Image, ImageOps

from teran.errors import TeranInputError
from teran_client.images import PICTURES
from teran_client.results import Hit, SearchResult

_BOXES = 3
"""Matches drawn on a picture: those of the highest cosines."""
_SIDE = 640
"""Pixels of a picture on the page."""
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
    kind = mimetypes.guess_type(Path(hit.uri).name)[0] or ""
    small = _thumbnail(hit.uri) if "://" not in hit.uri and kind.startswith("image/") else None
    return f'<img src="{escape(small or hit.uri)}" alt="{escape(hit.id)}">'


def _thumbnail(path: str) -> str | None:
    """A picture on this machine, small and upright, as an address that holds it."""
    try:
        with Image.open(path, formats=PICTURES) as image:
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a large JPEG is decoded coarsely
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except Exception:  # not ours to read, no name that a file can have, or no picture
        return None
    upright.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    upright.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
