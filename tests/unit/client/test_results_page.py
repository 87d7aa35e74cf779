"""A page of results shows what others have stored as text."""

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from teran_client import Hit, SearchResult
from teran_client.results_page import write_page

EVIL = """"><script>alert(1)</script><b onmouseover='x'>$title{0}"""


class Tags(HTMLParser):
    """Collects every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    "uri",
    [EVIL, "javascript:alert(1)", "http://host/a.jpg", "/etc/passwd", f"{'a' * 300}.jpg", None],
)
def test_nothing_stored_becomes_markup(tmp_path: Path, uri: str | None) -> None:
    match = {"word": EVIL, "region": 0, "cosine": 0.5, "box": [0.1, 0.1, 0.2, 0.2]}
    hit = Hit(EVIL, 1.0, 0.5, uri, EVIL, {"a": EVIL}, [match])
    write_page(tmp_path / "page.html", EVIL, SearchResult([hit], 1, 0.0, True, False))
    text = (tmp_path / "page.html").read_text()
    parser = Tags()
    parser.feed(text)
    assert "script" not in {tag for tag, _ in parser.tags}
    assert not [name for _, found in parser.tags for name in found if name.startswith("on")]
    sources = [found["src"] for tag, found in parser.tags if tag == "img"]
    assert sources == ([uri] if uri else [])  # a file that is no picture is not read
    assert "root:" not in text


def test_pictures_are_small_and_upright(tmp_path: Path) -> None:
    photo, exif = Image.new("RGB", (3000, 1000), "red"), Image.Exif()
    exif[0x0112] = 6
    photo.save(tmp_path / "large.jpg", exif=exif)
    hit = Hit("a", 1.0, 0.5, str(tmp_path / "large.jpg"), None, {}, [])
    write_page(tmp_path / "page.html", "red", SearchResult([hit], 1, 0.0, True, False))
    parser = Tags()
    parser.feed((tmp_path / "page.html").read_text())
    (source,) = [found["src"] or "" for tag, found in parser.tags if tag == "img"]
    kind, _, data = source.partition(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (kind, image.size) == ("data:image/jpeg", (213, 640))
        assert np.asarray(image.convert("RGB"))[300, 100] == pytest.approx([254, 0, 0], abs=5)
