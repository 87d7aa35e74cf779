"""Real regions through the full size: nothing overflows in half precision."""

import numpy as np
import pytest
import torch

from teran.evaluation.data import open_regions
from teran.model import TeranConfig
from teran.model.encoders import VisualEncoder, joint_transformer
from teran.model.precision import in_precision
from tests.conftest import REFERENCE


@pytest.fixture(scope="module")
def regions() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (10, 36, 2048) and boxes of ten COCO photos, by the original detector."""
    table = REFERENCE.parent / "data" / "caffe10" / "train2014_obj36.tsv"
    if not table.is_file():
        pytest.skip("no real features here")
    source = open_regions(table)
    found = [source.read(image) for image in source.ids()]
    features, boxes = (
        torch.from_numpy(np.stack([getattr(one, name) for one in found]))
        for name in ("features", "boxes")
    )
    return features, boxes


@pytest.mark.parametrize(("precision", "least"), [("fp16", 0.99999), ("bf16", 0.999)])
@torch.inference_mode()
def test_the_full_size_takes_them(
    regions: tuple[torch.Tensor, torch.Tensor], precision: str, least: float
) -> None:
    """Every value on the way is a number, and far enough from the largest that there is."""
    torch.manual_seed(0)
    config = TeranConfig()
    encoder = VisualEncoder(config, joint_transformer(config)).eval()
    inputs = (*regions, torch.ones(10, 36, dtype=torch.bool))
    expected = encoder(*inputs)
    largest: list[float] = []
    reduced = in_precision(encoder, precision)
    for module in reduced.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _, __, output: largest.append(float(output.abs().max()))
            )
    found = reduced(*inputs)
    assert max(largest) < 65504 / 16, "four bits of room in fp16"
    cosine = (found * expected).sum(dim=-1)
    assert cosine.min() > least
