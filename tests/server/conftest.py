"""A real Triton server on a tiny model: one for each test module, on free ports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from teran_client import TeranClient

from teran.cli.background import BackgroundServer, background_server


@pytest.fixture(scope="module")
def server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--check-interval", "1", "--gallery", str(folder / "gallery"))
    with background_server(repository, *flags, log=folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: BackgroundServer) -> Iterator[TeranClient]:
    with TeranClient(server.url, timeout=30) as connected:
        yield connected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
