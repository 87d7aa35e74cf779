"""The files that Prometheus and Grafana read."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring import dashboard
from tests.monitoring.conftest import MONITORING

DOCS = MONITORING.parent / "docs"


def test_rules_do_what_their_tests_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    command = [promtool, "test", "rules", str(MONITORING / "rules_test.yml")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_configurations_are_right(name: str, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt install prometheus)")
    config = yaml.safe_load((MONITORING / name).read_text())
    for job in config["scrape_configs"]:  # Debian builds its Prometheus without Kubernetes
        assert ("static_configs" in job) is not (job.pop("kubernetes_sd_configs", None) is not None)
    (tmp_path / name).write_text(yaml.safe_dump(config))
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    command = [promtool, "check", "config", str(tmp_path / name)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_tested_and_has_its_section_in_the_runbook() -> None:
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())
    tested = (MONITORING / "rules_test.yml").read_text()
    headings = re.findall(r"^## (.*)$", (DOCS / "runbook.md").read_text(), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    for rule in alerts:
        assert f"alertname: {rule['alert']}" in tested
        assert rule["annotations"]["runbook_url"].removeprefix("docs/runbook.md#") in anchors


def test_dashboard_file_is_what_the_code_says() -> None:
    assert dashboard.PATH.read_text() == dashboard.text(), "run `make generate`"
    assert json.loads(dashboard.text())["panels"]
