"""Where each word of a sentence looks in a picture, drawn as in the paper's figures."""

import base64
import io
from dataclasses import dataclass
from html import escape
from math import ceil
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from teran_client import Match

from teran.errors import TeranInputError

Floats = npt.NDArray[np.float32]
_SIDE = 640
"""Pixels of a picture's longer side, at most."""
_TILE, _GAP, _LINE = 320, 16, 26
"""Pixels in the drawing: width of a word's picture, room around it, height of a line of text."""
_COLUMNS = 4
_FRAME = (255, 214, 10)
_PAGE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$caption</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; color: #222; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.2rem; }
figure { margin: 0; } img { width: 100%; display: block; } small { color: #777; }
</style>
<h1>$caption</h1><p><small>$summary</small></p>
<main>$figures</main></html>
""")


@dataclass(frozen=True)
class Look:
    """Where one word looks."""

    word: str
    cosine: float
    """With its best region."""
    picture: Image.Image


def looks(picture: Image.Image, match: Match) -> list[Look]:
    """Draw every word that takes part.

    Args:
        picture: what the regions are of.
        match: of the picture and a sentence.
    """
    boxes = match.boxes * np.tile(np.array(picture.size, np.float32), 2)
    return [
        Look(word, cosine, heat_map(picture, boxes, match.similarity[:, place]))
        for (word, _, cosine), place in zip(
            match.best_regions(), np.flatnonzero(match.word_mask), strict=True
        )
    ]


def heat_map(picture: Image.Image, boxes: Floats, cosines: Floats) -> Image.Image:
    """Light up the regions a word matches and darken the rest; frame the best one.

    Args:
        picture: in RGB.
        boxes: (R, 4) in pixels.
        cosines: (R,), of the word with every region.
    """
    weight = np.zeros((picture.height, picture.width), np.float32)
    best = float(cosines.max())
    strength = np.clip((cosines - 0.6 * best) / max(0.4 * best, 1e-6), 0.0, 1.0)
    for (x1, y1, x2, y2), value in zip(boxes, strength, strict=True):
        area = (slice(int(y1), ceil(y2)), slice(int(x1), ceil(x2)))
        weight[area] = np.maximum(weight[area], value)
    mask = Image.fromarray((weight * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(4))
    dark = picture.convert("L").convert("RGB").point(lambda value: int(value * 0.5))
    result = Image.composite(picture, dark, mask)
    x1, y1, x2, y2 = (float(value) for value in boxes[int(cosines.argmax())])
    frame = [x1, y1, max(x1, min(x2, picture.width - 1)), max(y1, min(y2, picture.height - 1))]
    ImageDraw.Draw(result).rectangle(frame, outline=_FRAME, width=3)
    return result


def open_picture(path: Path) -> Image.Image:
    """Open a photo, upright and no larger than it is shown.

    Raises:
        TeranInputError: it is none.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise whatever they like
        raise TeranInputError(f"{path} is no picture: {error}") from error
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def blank(size: tuple[float, float]) -> Image.Image:
    """A grey picture of a shape, where only features are there."""
    width, height = size
    scale = _SIDE / max(width, height)
    shape = max(1, round(scale * width)), max(1, round(scale * height))
    return Image.new("RGB", shape, (160, 160, 160))


def draw(caption: str, match: Match, shown: list[Look]) -> Image.Image:
    """All words on one sheet."""
    font = ImageFont.load_default(18)
    ratio = shown[0].picture.height / shown[0].picture.width if shown else 0
    tile = (_TILE, max(1, round(_TILE * ratio)))
    columns = max(1, min(_COLUMNS, len(shown)))
    rows = -(-len(shown) // columns)
    width = columns * (_TILE + _GAP) + _GAP
    top = _GAP + 2 * _LINE
    sheet = Image.new("RGB", (width, top + rows * (tile[1] + _LINE + _GAP) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, _GAP), caption, "black", font)
    pen.text((_GAP, _GAP + _LINE), _summary(match), "grey", font)
    for i, look in enumerate(shown):
        row, column = divmod(i, columns)
        x, y = _GAP + column * (_TILE + _GAP), top + _GAP + row * (tile[1] + _LINE + _GAP)
        sheet.paste(look.picture.resize(tile, Image.Resampling.LANCZOS), (x, y))
        pen.text((x, y + tile[1]), f"{look.word}  {look.cosine:.2f}", "black", font)
    return sheet


def page(caption: str, match: Match, shown: list[Look]) -> str:
    """All words as a page, pictures included."""
    figures = "\n".join(
        f'<figure><img src="{_data_url(look.picture)}" alt="{escape(look.word)}"><figcaption>'
        f"<b>{escape(look.word)}</b> <small>{look.cosine:.2f}</small></figcaption></figure>"
        for look in shown
    )
    return _PAGE.substitute(caption=escape(caption), summary=_summary(match), figures=figures)


def _summary(match: Match) -> str:
    return (
        f"score {match.score:.2f}, {match.score_per_word:.2f} per word; framed: the best region "
        "of each"
    )


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
