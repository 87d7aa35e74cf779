"""What deploys the server is valid by the tools that would read it; no cluster is at hand."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from teran.supervisor.settings import ServeSettings

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.28", "1.32")


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def resources() -> list[str]:
    found: list[str] = documents(MANIFESTS / "kustomization.yaml")[0]["resources"]
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_fit_kubernetes_schemas(version: str) -> None:
    for name in resources():
        for document in documents(MANIFESTS / name):
            kubernetes_validate.validate(document, version, strict=True)


def test_every_manifest_is_used() -> None:
    assert {path.name for path in MANIFESTS.glob("*.yaml")} - {"kustomization.yaml"} == {
        *resources()
    }


def test_ports_and_paths_are_the_containers() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    exposed = set(re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE))
    pod = documents(MANIFESTS / "deployment.yaml")[0]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    ports = " ".join(sorted(str(port["containerPort"]) for port in container["ports"]))
    assert exposed == {ports}
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/bundle", "/var/lib/teran", "/dev/shm", "/tls", "/keys"} == mounted
    assert f"USER {pod['securityContext']['runAsUser']}" in dockerfile


def test_a_pod_lives_until_the_server_has_stopped() -> None:
    pod = documents(MANIFESTS / "deployment.yaml")[0]["spec"]["template"]["spec"]
    told = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    drain = float(told.get("TERAN_DRAIN", ServeSettings.drain))
    requests = float(told.get("TERAN_SHUTDOWN_TIMEOUT", ServeSettings.shutdown_timeout))
    assert drain > 0
    assert pod["terminationGracePeriodSeconds"] >= drain + requests + 10  # for what closes then


def test_compose_publishes_on_loopback_only() -> None:
    services = documents(ROOT / "compose.yaml")[0]["services"]
    published = [port for one in services.values() for port in one.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source


def test_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
