"""The real Prometheus, scraping a real server; skipped where it is not installed."""

import shutil
from pathlib import Path

import pytest

MONITORING = Path(__file__).parents[2] / "monitoring"


@pytest.fixture(scope="session")
def installed() -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (Debian: apt install prometheus)")
