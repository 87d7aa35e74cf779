"""The kernel for GPUs, without one: interpreted, and compiled for each."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from benchmarks.scan_kernel import CAPABILITIES, LARGEST, SENTENCES, compiled
from teran.gallery.search.device import Precision, choice

_SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have."""
_INSTRUCTION = {90: "wgmma", 100: "tcgen05"}


def test_what_it_calculates() -> None:
    """In a process of its own: whether it is interpreted is decided when it is imported."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", Path(__file__).with_name("interpreted.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert " passed" in ran.stdout


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_it_compiles(capability: int, precision: Precision) -> None:
    """Without spills, in the shared memory there is, and for the tensor cores there are."""
    if precision is Precision.FP8 and capability < 89:
        pytest.skip("no fp8 there")
    for shape in (SENTENCES, LARGEST) if precision is Precision.FP16 else (SENTENCES,):
        made = compiled(capability, precision, shape)
        assert made.spilled == 0
        assert made.registers <= 255
        assert made.shared <= _SHARED[capability] << 10
        # 10.0 has no instruction of the new kind for int8.
        known = "mma" if capability == 100 and precision is Precision.INT8 else None
        assert made.multiplies_by == (known or _INSTRUCTION.get(capability, "mma"))


@pytest.mark.parametrize(
    ("ours", "most"), [([1, 1, 1], np.inf), ([1, 1, 3], 96), ([3, 1, 1], 0), ([1, 3, 1], 12)]
)
def test_it_is_used_where_it_is_faster(
    ours: list[float], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By times that are made up: there is no GPU to measure."""
    times = iter([time for one in ours for time in (one, 2)])
    monkeypatch.setattr(choice, "_TIMED", (1, 1, 64))
    monkeypatch.setattr(choice, "seconds_of", lambda *_: next(times))
    assert choice.fused_wins_up_to.__wrapped__(torch.device("cpu"), Precision.FP16) == most


def test_where_it_does_not_run_torch_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not choice.fused_works.__wrapped__(torch.device("cpu"), Precision.FP16)
    assert "does not run on cpu" in caplog.text
