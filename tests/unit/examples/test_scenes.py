"""Scenes are reproducible, recognisable from their pixels, and truthfully described."""

import numpy as np
import pytest

from examples.scenes.dataset import Sample, make_contrast_pair, make_sample
from examples.scenes.judge import noun_hits, object_hits
from examples.scenes.regions import DETECTOR, find_regions
from examples.scenes.scene import COLOURS, HEIGHT, SHAPES, WIDTH, Scene
from examples.scenes.train import build_tokenizer
from examples.scenes.train_detector import ATTRIBUTES, SERVED, labelled
from teran.detector import RegionDetector


def test_a_sample_is_always_the_same() -> None:
    first, again = make_sample(5, "test"), make_sample(5, "test")
    assert first.scene == again.scene
    assert [c.text for c in first.captions] == [c.text for c in again.captions]
    assert first.png() == again.png()


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


def test_an_objects_colour_is_in_the_picture() -> None:
    sample = make_sample(3, "test")
    pixels = np.asarray(sample.image()).astype(int)
    last = sample.scene.objects[-1]
    x1, y1, x2, y2 = (int(value) for value in last.box)
    distance = np.abs(pixels[y1:y2, x1:x2] - np.array(COLOURS[last.colour])).sum(axis=2)
    assert distance.min() < 40


def test_what_a_detector_is_taught() -> None:
    photo, sample = labelled(3, "test"), make_sample(3, "test")
    assert photo.pixels.shape == (HEIGHT, WIDTH, 3)
    for item, box, number, has in zip(
        sample.scene.objects, photo.boxes, photo.classes, photo.attributes, strict=True
    ):
        assert tuple(box) == pytest.approx(item.box)
        assert SHAPES[number] == item.shape
        said = {name for name, one in zip(ATTRIBUTES, has, strict=True) if one}
        assert said == {item.colour, item.size, item.texture}


def test_the_demos_detector_finds_objects_and_names_them() -> None:
    """The one that is in the repository, on scenes that it has not seen."""
    samples = [make_sample(i, "test") for i in range(12)]
    found = find_regions(samples, quiet=True)
    hits = [object_hits(sample, one.boxes) for sample, one in zip(samples, found, strict=True)]
    assert np.mean(np.concatenate(hits)) > 0.95
    assert found[0].features.shape[1] == SERVED.feature_dim
    allowed = range(SERVED.min_regions, SERVED.max_regions + 1)
    assert {len(one) for one in found} <= set(allowed)
    assert found[7].name == "7"
    detector = RegionDetector.from_pretrained(DETECTOR)
    assert detector.config == SERVED
    named = 0
    for sample in samples:
        (regions,) = detector.detect([np.asarray(sample.image())])
        best = int(regions.confidence.argmax())
        box = regions.boxes[[best]] / np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
        shape = SHAPES[regions.labels[best]]
        named += any(
            object_hits(Sample(Scene((item,), 0), ()), box)[0]
            for item in sample.scene.objects
            if item.shape == shape
        )
    assert named > 0.9 * len(samples)


def test_judging() -> None:
    """A noun is right where its best region covers an object that it may mean, and else wrong."""
    sample = make_sample(0, "test")
    size = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)
    boxes = np.array([item.box for item in sample.scene.objects], np.float32) / size
    assert all(object_hits(sample, boxes))
    assert object_hits(sample, boxes[1:]) == [False, *[True] * (len(boxes) - 1)]
    for caption in sample.captions:
        tokens = ["[CLS]", *caption.words, "[SEP]"]
        right = np.zeros((len(boxes), len(tokens)), np.float32)
        wrong = right.copy()
        for position, meant in caption.links.items():
            others = set(range(len(boxes))) - set(meant)
            right[meant[0], position + 1] = wrong[others.pop(), position + 1] = 1
        links = len(caption.links)
        assert links
        assert noun_hits(sample, boxes, caption, tokens, right) == [True] * links
        assert noun_hits(sample, boxes, caption, tokens, wrong) == [False] * links


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
