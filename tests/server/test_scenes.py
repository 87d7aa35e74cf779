"""The demo's own measurement on a few of its pictures: from PNG bytes to ranked images."""

from pathlib import Path

from teran_client import TeranClient
from teran_export import ExportOptions, export

from examples.scenes.dataset import make_contrast_pairs, make_split
from examples.scenes.demo import MODEL, drawn, measure
from examples.scenes.regions import DETECTOR
from teran.cli.background import background_server


def test_pictures_are_found_and_words_look_at_their_objects(tmp_path: Path) -> None:
    """Features go on to the encoder in half precision, as a server may be told to send them."""
    options = ExportOptions(
        MODEL, tmp_path / "repository", "openvino", "fp32",
        detector=DETECTOR, feature_precision="fp16",
    )  # fmt: skip
    scenes, pairs = drawn(make_split("test", 40), "scene"), drawn(make_contrast_pairs(20), "pair")
    with (
        background_server(export(options).path, "--gallery", str(tmp_path / "gallery")) as server,
        TeranClient(server.url) as client,
    ):
        found = measure(client, scenes, pairs, "fp32")
    assert found.image_r1 >= 90
    assert found.image_r10 >= 98
    assert found.sentences.r1 >= 90
    assert found.objects >= 95
    assert found.nouns >= 90
    assert found.contrast >= 95
