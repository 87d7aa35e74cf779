"""Scenes are reproducible, recognisable from their pixels, and truthfully described."""

import numpy as np
import pytest

from examples.scenes.dataset import make_contrast_pair, make_sample
from examples.scenes.draw import draw
from examples.scenes.regions import FEATURE_DIM, REGIONS
from examples.scenes.scene import COLOURS, overlap
from examples.scenes.train import build_tokenizer


def test_a_sample_is_always_the_same() -> None:
    first, again = make_sample(5, "test"), make_sample(5, "test")
    assert first.scene == again.scene
    assert [c.text for c in first.captions] == [c.text for c in again.captions]
    np.testing.assert_array_equal(first.features, again.features)
    assert first.features.shape == (REGIONS, FEATURE_DIM)
    assert 0 <= first.boxes.min() <= first.boxes.max() <= 1


def test_splits_share_no_scene() -> None:
    seen = [make_sample(i, split).scene for split in ("train", "val", "test") for i in range(15)]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("index", range(10))
def test_links_point_at_what_the_words_say(index: int) -> None:
    sample = make_sample(index, "test")
    for caption in sample.captions:
        assert caption.links
        for position, objects in caption.links.items():
            assert caption.words[position].isalpha()
            shapes = {sample.scene.objects[i].shape for i in objects}
            assert len(shapes) == 1
            before = caption.words[max(position - 4, 0) : position]
            colours = [word for word in before if word in COLOURS]
            if colours:
                assert {sample.scene.objects[i].colour for i in objects} == {colours[-1]}


def test_every_object_has_a_region_and_its_colour_is_in_the_pixels() -> None:
    sample = make_sample(3, "test")
    pixels = np.asarray(draw(sample.scene)).astype(int)
    for item in sample.scene.objects:
        best = max(overlap(tuple(box), item.box) for box in sample.pixel_boxes.tolist())
        assert best > 0.5
    last = sample.scene.objects[-1]
    x1, y1, x2, y2 = (int(value) for value in last.box)
    distance = np.abs(pixels[y1:y2, x1:x2] - np.array(COLOURS[last.colour])).sum(axis=2)
    assert distance.min() < 40


@pytest.mark.parametrize("index", range(10))
def test_contrast_pairs_differ_in_one_attribute_or_a_swap(index: int) -> None:
    first, second = make_contrast_pair(index)
    changed = [
        (a, b) for a, b in zip(first.scene.objects, second.scene.objects, strict=True) if a != b
    ]
    assert len(changed) in (1, 2)
    assert first.scene.background_seed == second.scene.background_seed
    assert first.captions[0].text != second.captions[0].text
    if len(changed) == 2:
        (a, b), (c, d) = changed
        assert {a.shape, c.shape} == {b.shape, d.shape}
        assert {a.colour, c.colour} == {b.colour, d.colour}


def test_vocabulary_covers_the_captions() -> None:
    tokenizer = build_tokenizer()
    for index in range(40):
        for caption in make_sample(index, "val").captions:
            tokens = tokenizer.encode(caption.text).tokens
            assert "[UNK]" not in tokens
            assert not any(token.startswith("##") for token in tokens), caption.text
    assert tokenizer.encode("zebra").tokens == ["[CLS]", "z", "##e", "##b", "##r", "##a", "[SEP]"]
