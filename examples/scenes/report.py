"""Writes the demo's page: one HTML file with the retrieved pictures and what each word matched."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from PIL import Image
from teran_client import Match, Ranked
from teran_research.explain import heat_map

from examples.scenes.dataset import Sample
from examples.scenes.scene import HEIGHT, WIDTH

if TYPE_CHECKING:
    from examples.scenes.demo import Findings

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
