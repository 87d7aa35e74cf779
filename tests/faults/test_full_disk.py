"""A disk that is full at every single write: an error each, nothing acknowledged lost."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import disk


@pytest.mark.parametrize("times", ["once", "ever"])
def test_every_write_may_find_no_room(tmp_path: Path, times: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    command = [sys.executable, str(Path(__file__).with_name("filler.py")), str(root), times]
    environment = disk.environment(disk.build(tmp_path), root)
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    failed = [int(line.split()[1]) for line in ended.stdout.splitlines()]
    assert failed[-1] == 0, "the last is beyond all calls"
    assert sum(map(bool, failed)) > 20
