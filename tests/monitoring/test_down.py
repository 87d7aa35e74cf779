"""A server that is gone: its alert fires, and is over when it is back."""

import signal
from pathlib import Path

import pytest

from monitoring.local import addresses, prometheus, until
from teran.cli.background import background_server

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("installed")]


def test_a_server_that_is_gone_is_warned_of(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("gone")
    flags = ("--gallery", str(folder / "gallery"))
    with background_server(repository, *flags, log=folder / "log") as first:
        triton, supervisor = addresses(first)
        with prometheus(folder / "prometheus", triton, supervisor) as running:
            until(lambda: running.query("teran_ready == 1"), "it is up")
            assert "TeranDown" not in running.firing()
            first.process.send_signal(signal.SIGTERM)
            first.process.wait(60)
            until(lambda: "TeranDown" in running.firing(), "it is seen")
            ports = {
                "metrics": int(triton.split(":")[1]), "health": int(supervisor.split(":")[1])
            }  # fmt: skip
            again = background_server(repository, *flags, log=folder / "log", fixed_ports=ports)
            with again:
                until(lambda: "TeranDown" not in running.firing(), "it is over")
