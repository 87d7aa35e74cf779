"""A small data set from its files to the figures, in PyTorch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from teran_client.options import Access
from teran_research.cache import EmbeddingCache
from teran_research.cli import evaluate, pack, verify
from teran_research.evaluate import check_images, folds_of
from teran_research.roads import ModelRoad

from teran.errors import TeranInputError, TeranUnavailableError
from teran.evaluation.data import Regions, Split
from teran.evaluation.protocol import Fold, Report
from teran.evaluation.rouge import rouge_l
from teran.model import TeranModel
from tests.conftest import TINY
from tests.datasets import SIZE, sentence, write_dataset

IMAGES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_dataset(root, IMAGES)
    return root


def plain(model: TeranModel, root: Path) -> Report:
    """The same with no batches, no cache and the model's own alignment."""
    captions = [sentence(i) for i in range(5 * IMAGES)]
    owner = np.repeat(np.arange(IMAGES), 5)
    scores = np.zeros((IMAGES, len(captions)), np.float32)
    assert model.tokenizer
    with torch.inference_mode():
        words = [
            model.encode_captions(torch.tensor([ids]), torch.ones(1, len(ids)))
            for ids in (model.tokenizer.encode(caption).ids for caption in captions)
        ]
        for image in range(IMAGES):
            features = np.load(root / "features_36" / "bu_att" / f"{image}.npz")["feat"]
            boxes = np.load(root / "features_36" / "bu_box" / f"{image}.npy") / [*SIZE, *SIZE]
            regions = model.encode_images(
                torch.from_numpy(features)[None], torch.from_numpy(boxes).float()[None]
            )
            for caption, one in enumerate(words):
                scores[image, caption] = float(model.align(regions, one)[0])
    relevance = np.array(
        [
            [rouge_l(caption, captions[5 * i : 5 * i + 5]) for i in range(IMAGES)]
            for caption in captions
        ]
    )
    return Report.of([Fold.of(scores, owner, {"rouge_l": relevance})])


def run(root: Path, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    evaluate(
        root, dataset="f30k", model=model, json_file=out / "out.json", cache=out / "cache",
        **options,
    )  # fmt: skip
    found: dict[str, Any] = json.loads((out / "out.json").read_text())
    return found


def test_equals_one_by_one(
    data: Path, tiny_model: TeranModel, tiny_bundle: Path, tmp_path: Path
) -> None:
    found = run(data, tiny_bundle, tmp_path, markdown=tmp_path / "out.md")
    expected = json.loads(json.dumps(plain(tiny_model, data).to_dict()))
    for kind in ("image_retrieval", "sentence_retrieval"):
        for name in ("r1", "r5", "r10", "median_rank", "mean_rank", "ndcg_rouge_l"):
            assert found[kind][name] == pytest.approx(expected[kind][name], abs=1e-4), name
    assert found["rsum"] == pytest.approx(expected["rsum"], abs=1e-3)
    assert (found["images"], found["captions"], found["folds"]) == (IMAGES, 5 * IMAGES, 1)
    page = (tmp_path / "out.md").read_text()
    assert "| sentence retrieval | PyTorch fp32 |" in page
    assert f"{found['image_retrieval']['r1']:.1f} (" in page


def test_packed_it_says_the_same(
    data: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(data, tmp_path / "packed", dataset="f30k")
    verify(tmp_path / "packed")
    assert "30 images, all as they were packed" in capsys.readouterr().out
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = run(data, tiny_bundle, tmp_path / "a")
    second = run(tmp_path / "packed", tiny_bundle, tmp_path / "b")
    assert {**first, "date": ""} == {**second, "date": ""}


def test_precomputed_relevance_is_used(data: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Numbers without a header, as the authors' files are."""
    root = tmp_path / "f30k"
    root.mkdir()
    for entry in data.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "relevances").mkdir()
    grades = np.random.default_rng(1).random((5 * IMAGES, IMAGES), np.float32)
    file = root / "relevances" / "f30k-test-spice.npy"
    grades.tofile(file)
    without = run(data, tiny_bundle, tmp_path)
    found = run(tmp_path, tiny_bundle, tmp_path)  # in a folder of the data set's name
    assert 0 < found["image_retrieval"]["ndcg_spice"] < 1
    assert found["image_retrieval"]["ndcg_rouge_l"] == without["image_retrieval"]["ndcg_rouge_l"]
    pack(root, tmp_path / "packed", dataset="f30k")
    packed = run(tmp_path / "packed", tiny_bundle, tmp_path)
    assert packed["image_retrieval"] == found["image_retrieval"]
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(TeranInputError, match=r"f30k-test-spice\.npy has 17,996 bytes; .* 18,000"):
        run(root, tiny_bundle, tmp_path)


def test_it_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    calls: list[slice] = []

    def encode(part: slice) -> list[np.ndarray]:
        calls.append(part)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [np.full((i % 3, 4), i, np.float32) for i in range(part.start, part.stop)]

    cache = EmbeddingCache(tmp_path, "this model", "these images")
    with pytest.raises(KeyboardInterrupt):
        cache.fill(1200, encode)
    found = cache.fill(1200, encode)
    assert [(part.start, part.stop) for part in calls[2:]] == [(1000, 1200)] * 2
    assert [len(one) for one in found] == [i % 3 for i in range(1200)]
    assert (found[700] == 700).all()
    damaged = next(iter(sorted(cache.directory.glob("*.npz"))))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    cache.fill(1200, encode)
    assert calls[-1] == slice(0, 500)
    other = EmbeddingCache(tmp_path, "another model", "these images")
    assert other.directory != cache.directory


def test_another_model_is_not_taken_from_the_cache(
    data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    changed = TeranModel.from_pretrained(tiny_bundle)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.1)
    changed.save_pretrained(other)
    first, second = (run(data, bundle, tmp_path) for bundle in (tiny_bundle, other))
    assert first["image_retrieval"]["mean_rank"] != second["image_retrieval"]["mean_rank"]


def test_where_nothing_can_be_written_is_told_first(
    data: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "out.json"
    with pytest.raises(
        TeranInputError, match=r"can't write .*out\.json: there is no such directory"
    ):
        evaluate(data, dataset="f30k", model=tiny_bundle, json_file=absent)
    (tmp_path / "file").write_text("")
    with pytest.raises(TeranInputError, match="can't keep embeddings in"):
        evaluate(data, dataset="f30k", model=tiny_bundle, cache=tmp_path / "file")
    with pytest.raises(TeranUnavailableError):
        evaluate(
            data, dataset="f30k", model=tiny_bundle, server="127.0.0.1:9", cache=tmp_path / "kept",
            access=Access(timeout=2),
        )  # fmt: skip
    assert not (tmp_path / "kept").exists(), "nothing was encoded in vain"
    with pytest.raises(TeranInputError, match="give --model, --server, or both"):
        evaluate(data, dataset="f30k")
    with pytest.raises(TeranInputError, match="--through gallery needs a --server"):
        evaluate(data, dataset="f30k", model=tiny_bundle, through="gallery")


def split_of(images: int) -> Split:
    return Split.of("coco", "test", [(str(i), ["a dog ."] * 5) for i in range(images)])


def test_folds() -> None:
    folds = folds_of(split_of(2300), "1k")
    assert [fold.image_ids[0] for fold in folds] == ["0", "1000"]
    assert [len(fold.captions) for fold in folds] == [5000, 5000]
    assert folds[1].owner[-1] == 999
    (whole,) = folds_of(split_of(2300), "5k")
    assert len(whole.image_ids) == 2300
    with pytest.raises(TeranInputError, match="has 999 images; the protocol 1k needs 1000"):
        folds_of(split_of(999), "1k")
    with pytest.raises(TeranInputError, match="'2k' is none of the protocols"):
        folds_of(split_of(10), "2k")


def test_missing_images_are_told_before_anything_is_encoded() -> None:
    class Source:
        def ids(self) -> list[str]:
            return ["1", "3"]

        def fingerprint(self) -> str:
            return ""

        def read(self, image: str) -> Regions:
            raise AssertionError(image)

    with pytest.raises(TeranInputError, match=r"8 of 10 .* have no regions: 0, 2, 4, 5, 6, "):
        check_images(split_of(10), Source())


def test_batches_change_nothing(tiny_bundle: Path) -> None:
    road = ModelRoad(tiny_bundle)
    random = np.random.default_rng(0)

    def image(regions: int) -> Regions:
        features = random.random((regions, TINY.feature_dim), np.float32)
        return Regions(features, np.tile(np.array([0, 0, 0.5, 1], np.float32), (regions, 1)))

    def each(encode: Any, items: Sequence[Any]) -> list[np.ndarray]:
        return [encode([item])[0] for item in items]

    images = [image(int(regions)) for regions in random.integers(1, 50, 70)]
    captions = [sentence(i) for i in range(140)]
    for found, wanted in (
        (road.images(images), each(road.images, images)),
        (road.captions(captions), each(road.captions, captions)),
    ):
        for one, other in zip(found, wanted, strict=True):
            assert one == pytest.approx(other, abs=1e-5)
