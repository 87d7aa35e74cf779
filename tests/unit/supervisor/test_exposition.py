"""What the supervisor exposes."""

import json
import shutil
from pathlib import Path

import pytest

from teran.errors import TeranInputError, TeranOverloadedError
from teran.runtime import metrics
from teran.supervisor.exposition import Exposition
from teran.supervisor.health import HealthState


def test_a_repository_that_is_removed_is_told_of_still(tmp_path: Path) -> None:
    """It is, two publications later, while its server goes on."""
    old, new, link = tmp_path / "old", tmp_path / "new", tmp_path / "repository"
    for folder in (old, new):
        folder.mkdir()
        manifest = {
            "request": {"bundle": "ab" * 32, "engine": "openvino"},
            "precision": "int8",
            "pooling": "MrSw",
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
    link.symlink_to(old)
    exposition = Exposition(tmp_path, HealthState(), old, link)
    assert b"teran_repository_stale 0.0" in exposition.text()
    link.unlink()
    link.symlink_to(new)
    shutil.rmtree(old)
    text = exposition.text()
    assert b"teran_repository_stale 1.0" in text
    assert b'precision="int8"' in text


def test_processes_of_a_model_add_up(tmp_path: Path) -> None:
    recorder = metrics.Recorder("gallery", tmp_path)
    recorder.execution(items=3, errors=[None, TeranInputError("wrong")], seconds=0.004)
    (own,) = tmp_path.glob("gallery.*")
    shutil.copy(own, tmp_path / "gallery.1.metrics")  # of a process that is gone
    recorder.execution(items=5, errors=[None, TeranOverloadedError("later")], seconds=20)
    totals = metrics.read_recorded(tmp_path)["gallery"]
    assert metrics.values_of(metrics.REFUSED_REQUESTS, totals) == [2]
    assert metrics.values_of(metrics.OVERLOADED_REQUESTS, totals) == [1]
    *counts, total = metrics.values_of(metrics.EXECUTION_SECONDS, totals)
    assert sum(counts) == 3
    assert counts[-1] == 1  # beyond the last bound
    assert total == pytest.approx(20.008)
