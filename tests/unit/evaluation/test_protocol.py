"""What is reported: against the authors' figures, and what ties and chance may change."""

import numpy as np
import pytest

from teran.errors import TeranInputError
from teran.evaluation.protocol import Fold, Report
from tests.conftest import reference_archive

OWNER = np.repeat(np.arange(5000), 5)


@pytest.fixture(scope="module")
def archive() -> dict[str, np.ndarray]:
    return dict(reference_archive("metrics_global.npz"))


@pytest.fixture(scope="module")
def scores(archive: dict[str, np.ndarray]) -> np.ndarray:
    images, captions = (archive[name].astype(np.float32) for name in ("img", "cap"))
    return images @ captions.T


def recalls(report: Report) -> list[float]:
    return [
        value
        for one in (report.sentence_retrieval, report.image_retrieval)
        for value in (one.r1, one.r5, one.r10, one.median_rank, one.mean_rank)
    ]


def test_equals_the_authors_with_all_5000(
    archive: dict[str, np.ndarray], scores: np.ndarray
) -> None:
    fold = Fold.of(scores, OWNER)
    for ranks, name in ((fold.image_ranks, "t2i"), (fold.caption_ranks, "i2t")):
        low, high = archive[f"{name}_5k_rank_lo"], archive[f"{name}_5k_rank_hi"]
        assert ((low <= ranks) & (ranks <= high)).all()
        assert (ranks == archive[f"{name}_5k_ranks"]).mean() > 0.99
    expected = [*archive["i2t_5k_metrics"][:5], *archive["t2i_5k_metrics"][:5]]
    assert recalls(Report.of([fold])) == pytest.approx(expected, abs=0.05)


def test_equals_the_authors_with_five_folds(
    archive: dict[str, np.ndarray], scores: np.ndarray
) -> None:
    folds = [
        Fold.of(scores[1000 * i : 1000 * (i + 1), 5000 * i : 5000 * (i + 1)], OWNER[:5000])
        for i in range(5)
    ]
    report, mean = Report.of(folds), archive["folds_mean"]
    assert recalls(report) == pytest.approx([*mean[:5], *mean[7:12]], abs=0.05)
    assert report.rsum == pytest.approx(mean[16], abs=0.2)
    assert (report.images, report.captions, report.folds) == (5000, 25000, 5)
    for one in (report.image_retrieval, report.sentence_retrieval):
        for name, (low, high) in one.intervals.items():
            assert low < getattr(one, name) < high
            assert high - low < 3.5, "of 5,000 images"
    low, high = report.rsum_interval
    assert low < report.rsum < high


def test_ties_count_against_the_query_and_are_told() -> None:
    scores = np.array([[2, 1, 0, 0], [2, 0, 3, 3]], np.float32)
    report = Report.of([Fold.of(scores, [0, 0, 1, 1])])
    assert report.image_retrieval.r1 == 75
    assert report.image_retrieval.tied_queries == 1
    assert report.image_retrieval.with_ties_for == (100, 100, 100)
    assert report.sentence_retrieval.r1 == 100
    assert report.sentence_retrieval.tied_queries == 0


def test_captions_may_be_ranked_by_other_scores() -> None:
    scores = np.eye(2, dtype=np.float32)
    report = Report.of([Fold.of(scores, [0, 1], sentence_scores=scores[::-1])])
    assert (report.image_retrieval.r1, report.sentence_retrieval.r1) == (100, 0)


def test_what_can_not_be_ranked_is_refused() -> None:
    with pytest.raises(TeranInputError, match="1 of 4 scores are no finite numbers"):
        Fold.of(np.array([[0, np.nan], [0, 1]]), [0, 1])
    with pytest.raises(TeranInputError, match="an image has no caption"):
        Fold.of(np.zeros((2, 2)), [0, 0])


def test_what_is_written() -> None:
    found = Report.of([Fold.of(np.eye(2), [0, 1], {"rouge_l": np.eye(2)})]).to_dict()
    for kind in ("image_retrieval", "sentence_retrieval"):
        one = found[kind]
        assert isinstance(one, dict)
        assert one["ndcg_rouge_l"] == 1
        assert one.keys() >= {"r1", "r5", "r10", "median_rank", "mean_rank"}
    assert found["rsum"] == 600
