"""The gate where a repository is served. With an engine that this host can run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from teran_export.calibration import CalibrationData
from teran_export.gate import Answers
from teran_export.verification import verify

from teran.errors import ExportError
from teran.model import TeranModel
from teran.model.random import random_model
from tests.conftest import TINY


@pytest.fixture
def unverified(repository: Path, tiny_model: TeranModel, tmp_path: Path) -> Path:
    """As if it had been built where it could not be run."""
    copy = tmp_path / "repository"
    shutil.copytree(repository, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"verified": False}))
    Answers.of(tiny_model, CalibrationData.synthetic(TINY)).save(copy / "answers.npz")
    return copy


def test_engines_are_checked_once(unverified: Path) -> None:
    said: list[str] = []
    assert "checked on" in verify(unverified, said.append)
    assert len(said) == 1
    found = json.loads((unverified / "verified.json").read_text())
    assert found["refused"] is None
    assert found["encoders"]["textual_encoder"]["min_cosine"] > 0.999
    assert found["encoders"]["textual_encoder"]["milliseconds"] > 0
    (unverified / "answers.npz").unlink()
    assert "checked on" in verify(unverified, said.append)
    assert len(said) == 1


def test_another_host_is_another_check(unverified: Path) -> None:
    verify(unverified)
    path = unverified / "verified.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"host": {"gpu": "another"}}))
    said: list[str] = []
    verify(unverified, said.append)
    assert len(said) == 1


def test_what_differs_is_refused_with_its_figure(unverified: Path) -> None:
    other = random_model(TINY, seed=4)
    Answers.of(other, CalibrationData.synthetic(TINY)).save(unverified / "answers.npz")
    for _ in range(2):  # found, and then known
        with pytest.raises(ExportError, match=r"visual_encoder: cosine -?0\.\d+ on average"):
            verify(unverified)


def test_recall_counts_where_data_came_along(unverified: Path, tiny_model: TeranModel) -> None:
    data = CalibrationData.synthetic(TINY)
    arrays = data.to_arrays() | {"image_of_caption": np.arange(128) // 2}
    Answers.of(tiny_model, CalibrationData.of_arrays(arrays)).save(unverified / "answers.npz")
    verify(unverified)
    assert json.loads((unverified / "verified.json").read_text())["recall_loss"]["image_r1"] < 0.5


def test_what_was_checked_at_its_export_is_not_checked_again(repository: Path) -> None:
    assert verify(repository) == "checked when it was exported"
    with pytest.raises(ExportError, match="not published"):
        verify(repository / "alignment")


def test_damaged_answers_are_named(unverified: Path) -> None:
    path = unverified / "answers.npz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"answers\.npz can't be read"):
        verify(unverified)
