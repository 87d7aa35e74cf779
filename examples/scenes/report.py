"""Writes the demo's page: one HTML file with the retrieved pictures and what each word matched."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from teran_client import Match, Ranked

from examples.scenes.dataset import Sample
from examples.scenes.scene import HEIGHT, WIDTH

if TYPE_CHECKING:
    from examples.scenes.demo import Findings

Floats = npt.NDArray[np.float32]
_LOOKS = 0.15
"""Words whose best cosine is below this look nowhere in particular, and are not shown."""


@dataclass(frozen=True)
class Query:
    """One sentence, what was found for it, and how its words match the best picture."""

    text: str
    truth: int | None
    """The scene the sentence was written for; None where nobody wrote it for one."""
    ranking: list[Ranked]
    match: Match


def heat_map(image: Image.Image, boxes: Floats, similarity: Floats) -> Image.Image:
    """Light up the regions a word matches and darken the rest; outline the best one.

    Args:
        image: the picture.
        boxes: (R, 4) in pixels.
        similarity: (R,), the word's cosine with every region.
    """
    weight = np.zeros((HEIGHT, WIDTH), np.float32)
    best = float(similarity.max())
    strength = np.clip((similarity - 0.6 * best) / max(0.4 * best, 1e-6), 0.0, 1.0)
    for (x1, y1, x2, y2), value in zip(boxes, strength, strict=True):
        area = (slice(int(y1), int(np.ceil(y2))), slice(int(x1), int(np.ceil(x2))))
        weight[area] = np.maximum(weight[area], value)
    mask = Image.fromarray((weight * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(4))
    dark = image.convert("L").convert("RGB").point(lambda value: int(value * 0.5))
    result = Image.composite(image, dark, mask)
    outline = [float(value) for value in boxes[int(similarity.argmax())]]
    ImageDraw.Draw(result).rectangle(outline, outline=(255, 214, 10), width=3)
    return result


def write_report(
    path: Path, findings: "Findings", queries: list[Query], samples: list[Sample]
) -> None:
    """Write the page, pictures included, to `path`."""

    def picture(index: int) -> str:
        return _data_url(samples[index].image(), 240)

    def words(query: Query) -> list[dict[str, str]]:
        sample = samples[query.ranking[0].index]
        image, boxes = sample.image(), query.match.boxes * (WIDTH, HEIGHT, WIDTH, HEIGHT)
        shown = []
        for w in np.flatnonzero(query.match.word_mask):
            word, column = query.match.tokens[w], query.match.similarity[:, w]
            if column.max() > _LOOKS:
                heat = heat_map(image, boxes, column)
                shown.append(
                    {"word": word, "cosine": f"{column.max():.2f}", "image": _data_url(heat, 200)}
                )
        return shown

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    page = environment.get_template("report.html.jinja").render(
        findings=findings, queries=queries, picture=picture, words=words
    )
    path.write_text(page, encoding="utf-8")


def _data_url(image: Image.Image, width: int) -> str:
    """The picture as a JPEG data URL, twice `width` pixels wide at most so that it stays crisp."""
    buffer = io.BytesIO()
    size = (
        min(width * 2, image.width),
        round(min(width * 2, image.width) * image.height / image.width),
    )
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
