"""The kernel for GPUs, without one: interpreted, and compiled for each."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from benchmarks.scan_kernel import CAPABILITIES, LARGEST, SENTENCES, compiled
from teran.gallery.search.device import Precision
from teran.gallery.search.device.choice import fused_works

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


def test_where_it_does_not_run_torch_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not fused_works(torch.device("cpu"), Precision.FP16)
    assert "does not run on cpu" in caplog.text
