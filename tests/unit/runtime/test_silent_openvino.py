"""OpenVINO reports to nobody, and no process of a server's is forked for that."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OTHERWISE = re.compile(r"^\s*(import (openvino|nncf)\b|from (openvino|nncf)\b)", re.MULTILINE)
_FORKS = """
import os, sys, time
os.register_at_fork(before=lambda: print("a fork"))
{imports}
time.sleep(1)
print(openvino.Core().available_devices)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "from teran.runtime.silent_openvino import openvino",
        "from teran_export.engines.openvino import openvino; import nncf",
    ],
)
def test_nothing_is_sent(imports: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", _FORKS.format(imports=imports)],
        env={"HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT}/export:{ROOT}/client"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.strip() == "['CPU']"


def test_it_is_imported_in_no_other_way() -> None:
    """But for what quantises, which imports NNCF after it."""
    folders = (
        "teran", "export", "client", "research", "backends", "model_repository", "benchmarks",
    )  # fmt: skip
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    others = {path.name for path in files if OTHERWISE.search(path.read_text(encoding="utf-8"))}
    assert others == {"silent_openvino.py", "openvino.py"}
