"""What Prometheus sees of a server under load, and of one that fails in every way it warns of."""

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml
from teran_client import TeranClient, TeranInputError

from monitoring import dashboard
from monitoring.load import MixedLoad
from monitoring.local import Prometheus, addresses, prometheus, until
from teran.cli.background import BackgroundServer, background_server
from tests.data import captions, images
from tests.monitoring.conftest import MONITORING

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("installed")]
RESERVE = 256 << 20


class Load(MixedLoad):
    """Also sends what must be refused, where it is told to."""

    wrong = False

    def __init__(self, url: str) -> None:
        super().__init__(url, images(12), captions(12))

    def round(self, client: TeranClient, i: int) -> None:
        if not self.wrong:
            super().round(client, i)
            return
        with pytest.raises(TeranInputError):
            client.match(images(1)[0], "!")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk that can be filled."""
    path = tmp_path_factory.mktemp("disk")
    size = RESERVE + (200 << 20)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield path
    if mounted:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def server(
    repository: Path, disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BackgroundServer]:
    log = tmp_path_factory.mktemp("server") / "log"
    flags = ("--check-interval", "1", "--gallery", str(disk / "gallery"))
    try:
        with background_server(repository, *flags, log=log) as running:
            yield running
    finally:  # shown where the last test failed
        print("\n".join(log.read_text(encoding="utf-8").splitlines()[-60:]))


@pytest.fixture(scope="module")
def load(server: BackgroundServer) -> Iterator[Load]:
    made = Load(server.url)
    yield made
    made.close()


@pytest.fixture(scope="module")
def seen(
    server: BackgroundServer, load: Load, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    until(lambda: load.rounds > 0 or load.error, "the load has begun")
    assert load.error is None
    with prometheus(tmp_path_factory.mktemp("prometheus"), *addresses(server)) as running:
        until(lambda: len(running.query("teran:requests:rate5m")) > 5, "rates are recorded")
        until(lambda: running.query("teran_gallery_items"), "galleries are told of")
        until(lambda: running.query("teran:errors:ratio_rate6h"), "ratios are recorded")
        yield running


def test_every_panel_has_data(seen: Prometheus) -> None:
    for row in dashboard.ROWS.values():
        for panel in row:
            for legend, expression in panel.lines.items():
                if not panel.gpu_only:  # a busy host may take a while between two requests
                    until(partial(seen.query, expression), f"{panel.title}: {expression}")
                for one in seen.query(expression):  # a legend names labels that are there
                    for label in re.findall(r"{{(\w+)}}", legend):
                        assert one["metric"].get(label), f"{panel.title}: no label {label}"


def test_every_rule_is_evaluated(seen: Prometheus) -> None:
    rules = [rule for group in seen.get("rules")["groups"] for rule in group["rules"]]
    wanted = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    assert len(rules) == sum(len(group["rules"]) for group in wanted)
    for rule in rules:
        assert rule["health"] == "ok", rule
        if rule["type"] == "recording":
            until(partial(seen.query, rule["name"]), f"{rule['name']} has no series")


def test_a_healthy_server_warns_of_nothing(seen: Prometheus) -> None:
    assert seen.query("sum(teran:errors:ratio_rate5m)")[0]["value"][1] == "0"
    # The load takes what it gets, and so may others on this host.
    assert seen.firing() <= {"TeranSaturated", "TeranQueueTime", "TeranSlow"}


def test_refused_requests_are_no_errors(seen: Prometheus, load: Load) -> None:
    load.wrong = True
    refused = 'rate(teran_refused_requests_total{model="tokenizer"}[5s]) > 0'
    until(lambda: seen.query(refused), "refusals are counted")
    until(lambda: seen.query(f"min_over_time(({refused})[12s:1s])"), "for some time")
    assert not seen.query("teran:errors:ratio_rate5m > 0")
    assert not {"TeranErrorsFast", "TeranErrorsSlow"} & seen.firing()
    load.wrong = False


def test_the_table_tells_of_every_metric_and_of_no_other(seen: Prometheus) -> None:
    table = (MONITORING.parent / "docs" / "metrics.md").read_text()
    table = table.partition("The client's")[0]
    told = set(re.findall(r"^\| `(teran_\w+)`", table, re.MULTILINE))
    names = {name for name in seen.get("label/__name__/values") if name.startswith("teran_")}
    exposed = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
    # A model that never failed has no reloads to tell of.
    assert exposed | {"teran_model_reloads_total"} == told
    panels = {panel.title for row in dashboard.ROWS.values() for panel in row}
    rules = (MONITORING / "rules.yml").read_text()
    for line in re.findall(r"^\| `teran_.*$", table, re.MULTILINE):
        for user in filter(None, re.split(r"[;,] ", line.split("|")[6].strip())):
            assert f"alert: {user}\n" in rules or any(title.startswith(user) for title in panels), (
                user
            )


def test_labels_have_few_values(seen: Prometheus) -> None:
    bounded = {
        "model": 15, "reason": 8, "le": 60, "gallery": 2, "version": 1, "instance": 2, "job": 1,
        "source": 2, "__name__": 200, "engine": 1, "precision": 1, "fingerprint": 1, "pooling": 1,
        "alertname": 20, "alertstate": 2, "severity": 3, "quantile": 5,
    }  # fmt: skip
    for label in seen.get("labels"):
        values = seen.get(f"label/{label}/values")
        assert len(values) <= bounded.get(label, 0), f"{label}: {values[:30]}"


def test_full_disk_is_warned_of_and_over(seen: Prometheus, disk: Path) -> None:
    if not disk.is_mount():
        pytest.skip("mounting a small disk needs root")
    filler = disk / "filler"
    with filler.open("wb") as file:  # less is left than a write wants, but not nothing
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - RESERVE // 2)
    until(lambda: {"TeranGalleryWriteErrors", "TeranErrorsFast"} <= seen.firing(), "it is seen")
    filler.unlink()
    calm = {"TeranGalleryWriteErrors", "TeranErrorsFast"}
    until(lambda: not calm & seen.firing(), "it is over", 90)


def test_requests_that_wait_are_warned_of(seen: Prometheus, server: BackgroundServer) -> None:
    """A model that stands still most of the time: never long enough to be called hung."""
    slow = {"TeranQueueTime", "TeranSearchSlow"}
    (stub,) = stubs_of(server, "textual_encoder")
    held = threading.Event()

    def hold() -> None:
        while not held.wait(0.01):
            with suppress(psutil.NoSuchProcess):
                stub.send_signal(signal.SIGSTOP)
                held.wait(0.9)
                stub.send_signal(signal.SIGCONT)

    holding = threading.Thread(target=hold)
    crowd = [Load(server.url) for _ in range(4)]
    holding.start()
    try:
        until(lambda: slow <= seen.firing(), "it is seen")
    finally:
        held.set()
        holding.join()
        for one in crowd:
            one.close()
    until(lambda: not slow & seen.firing(), "it is over")


def test_a_model_that_keeps_dying_is_warned_of_and_over(
    seen: Prometheus, server: BackgroundServer
) -> None:
    """Once is not enough: it is back before anybody has to know."""

    def is_seen() -> bool:
        for stub in stubs_of(server, "gallery"):
            with suppress(psutil.NoSuchProcess):
                stub.kill()
        return "TeranModelNotReady" in seen.firing()

    until(is_seen, "it is seen")
    until(lambda: "TeranModelNotReady" not in seen.firing(), "it is over")
    until(server.is_ready, "everything answers")


def stubs_of(server: BackgroundServer, model: str) -> list[psutil.Process]:
    """The processes that run a model."""
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(part.startswith(f"{model}_") for part in process.cmdline()):
                found.append(process)
    return found
