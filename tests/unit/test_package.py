"""The wheel holds all that its users need; `make dist` proves it in empty environments."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked, with nothing of the checkout beside it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir"]
    subprocess.run([*command, str(folder), str(ROOT)], check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder


def run(wheel: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=wheel, env={**os.environ, "PYTHONPATH": str(wheel)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_brings_sources_licence_and_types(wheel: Path) -> None:
    names = {str(path.relative_to(wheel)) for path in wheel.rglob("*")}
    packages = ("teran", "teran_client", "teran_export")
    assert {f"{package}/py.typed" for package in packages} < names
    assert "teran/_data/backends/openvino/model.py" in names
    assert "teran/_data/model_repository/gallery/1/model.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.split("/")[0] in ("tests", "tools", "benchmarks")]


def test_its_models_are_its_own(wheel: Path) -> None:
    code = "from teran.resources import *; print(MODEL_REPOSITORY, BACKENDS)"
    for folder in run(wheel, "-c", code).split():
        assert folder.startswith(str(wheel))


def test_its_client_does_without_torch(wheel: Path) -> None:
    run(wheel, "-c", "import sys, teran_client; assert 'torch' not in sys.modules")
    assert "search" in run(wheel, "-m", "teran_client.cli", "--help")
