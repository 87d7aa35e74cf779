"""`make monitor`: what it shows, and that nothing is left of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("installed")]
COMMAND = [sys.executable, "-m", "monitoring.live"]


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_it_shows_draws_and_stops(repository: Path, tmp_path: Path) -> None:
    picture = tmp_path / "panels.png"
    flags = ["--repository", str(repository), "--seconds", "15", "--picture", str(picture)]
    with subprocess.Popen(
        [*COMMAND, *flags], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        seen: set[psutil.Process] = set()
        while process.poll() is None:
            seen |= set(descendants(process))
            time.sleep(0.5)
        assert process.stdout is not None
        output = process.stdout.read()
    assert process.returncode == 0, output
    assert "http://127.0.0.1" in output
    assert "alerts that fire" in output
    assert "server and Prometheus are stopped" in output
    assert len(seen) > 2  # the supervisor, Triton, its models, Prometheus
    assert not [one for one in seen if one.is_running()]
    with Image.open(picture) as drawn:
        assert drawn.width > 1000


def test_ctrl_c_sums_up_and_stops(repository: Path, tmp_path: Path) -> None:
    flags = ["--repository", str(repository), "--seconds", "600"]
    with subprocess.Popen(
        [*COMMAND, *flags], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C" in line:
                break
        time.sleep(5)  # the load is under way
        children = descendants(process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "rounds of the load" in output
    assert "server and Prometheus are stopped" in output
    assert children
    assert not [one for one in children if one.is_running()]


def test_without_prometheus_it_says_how_to_get_it(tmp_path: Path) -> None:
    ran = subprocess.run(
        COMMAND, cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 1
    assert "apt install prometheus" in ran.stdout
