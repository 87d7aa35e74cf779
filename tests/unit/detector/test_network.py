"""The networks on photos of different sizes at once, and with their norms folded."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teran.detector import DetectorConfig
from teran.detector.network import ProposalNetwork, fold_norms
from teran.detector.photo import map_side, padded
from teran.detector.random import random_detector

CONFIG = DetectorConfig(50, 8, 16, 8, 16, 10, 5, 64, 100, 200, 40, 6, 6)


@pytest.fixture(scope="module")
def network() -> ProposalNetwork:
    return random_detector(CONFIG, seed=2).proposal_network


@settings(max_examples=25)
@given(
    sizes=st.lists(st.tuples(st.integers(17, 128), st.integers(17, 128)), min_size=1, max_size=3)
)
def test_photos_together_give_what_each_gives_by_itself(
    network: ProposalNetwork, sizes: list[tuple[int, int]]
) -> None:
    random = np.random.default_rng(0)
    photos = [(random.standard_normal((3, *size)) * 50).astype(np.float32) for size in sizes]
    framed = [padded(photo, 128, 128) for photo in photos]
    pixels, masks = (torch.from_numpy(np.stack(each)) for each in zip(*framed, strict=True))
    with torch.inference_mode():
        together = network(pixels, masks)
        for i, photo in enumerate(photos):
            alone = network(torch.from_numpy(photo[None]))
            height, width = map(map_side, sizes[i])
            assert alone[0].shape[2:] == (height, width)
            for all_, one in zip(together, alone, strict=True):
                difference = (all_[i, :, :height, :width] - one[0]).abs().max()
                assert difference <= 1e-5 * max(1.0, float(one.abs().max()))
            outside = together[0][i].clone()
            outside[:, :height, :width] = 0
            assert not outside.any()


def test_folded_norms_change_nothing(network: ProposalNetwork) -> None:
    folded = copy.deepcopy(network)
    fold_norms(folded)
    assert not any("norm" in name for name, _ in folded.named_buffers())
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 50
    with torch.inference_mode():
        for ours, theirs in zip(folded(pixels), network(pixels), strict=True):
            assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))
