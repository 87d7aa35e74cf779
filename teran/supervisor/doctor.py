"""Looks at everything a server needs on this host, and says what to do about what is missing."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from teran.errors import ServingError
from teran.runtime.environment import available_cores
from teran.secrets import read_key
from teran.supervisor import host, installation
from teran.supervisor.health import fetch
from teran.supervisor.repository import check_repository
from teran.supervisor.settings import ServeSettings

_FAST = {"bf16": ("avx512_bf16", "amx_bf16"), "int8": ("avx512_vnni", "avx_vnni", "amx_int8")}
"""Instruction sets, as Linux names them, without which a precision gains little on a CPU."""
MENDED = (2, 59)
"""Triton's version in NVIDIA's release 25.07, which mends what is known against those before."""
_GPU_ENGINES = ("tensorrt", "tensorrt-rtx")
_PACKAGES = {"aoti": "torch", "tensorrt-rtx": "tensorrt-rtx-cu12-bindings"}
"""Of engines that are called otherwise."""
_SMI = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


class Verdict(StrEnum):
    """How bad it is."""

    GOOD = "good"
    WARNING = "warning"
    """It will serve, but not as well as it could, or not as safely."""
    ERROR = "error"
    """It won't serve."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    subject: str
    message: str
    advice: str = ""


good, warning, error = (partial(Finding, verdict) for verdict in Verdict)
Check = Callable[[ServeSettings], Iterator[Finding]]


def examine(settings: ServeSettings, *more: Check) -> Iterator[Finding]:
    """Look at everything, one after another, `more` at the end; changes nothing."""
    checks: tuple[Check, ...] = (
        _packages, _triton, _repository, _processor, _gpu, _memory, _ports, _folders, _security,
        _leftovers, _prometheus,
    )  # fmt: skip
    for check in (*checks, *more):
        try:
            yield from check(settings)
        except Exception as problem:  # a broken host is what this is for
            yield error(check.__name__.strip("_"), f"can't be looked at: {problem!r}")


def _packages(_: ServeSettings) -> Iterator[Finding]:
    missing, wrong, found = [], [], 0
    for text in requires("teran-serving") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": "server"}):
            continue
        if wanted.name == "nvidia-pytriton":  # one of the places where a server may be
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            missing.append(wanted.name)
            continue
        found += 1
        if not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name} {there} ({wanted.specifier} is needed)")
    if missing or wrong:
        problems = [f"missing: {', '.join(missing)}"] if missing else []
        problems += [f"unfit: {', '.join(wrong)}"] if wrong else []
        yield error("packages", "; ".join(problems), "pip install 'teran-serving[server]'")
    else:
        yield good("packages", f"teran-serving {version('teran-serving')}, {found} others")


def _triton(_: ServeSettings) -> Iterator[Finding]:
    try:
        server = installation.find()
        environment = server.environment()
    except ServingError as problem:
        yield error("triton", str(problem))
        return
    command = [str(server.binary), "--help"]
    ran = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=30
    )
    if "--model-repository" in ran.stdout + ran.stderr:
        yield good("triton", f"{'.'.join(map(str, server.version)) or '?'}, {server.binary}")
        yield from _vulnerabilities(server.version)
        if not installation.has_preload():
            yield warning(
                "preload",
                "built without it, or for a newer system: where a model's process stands still for "
                "a second, as when the virtual machine pauses, Triton answers wrongly or ends, and "
                "where /dev/shm is full, it names its shared memory to clients",
                "install a C compiler, then teran-serving again",
            )
    else:
        reason = (ran.stderr or ran.stdout).strip().split("\n")[-1]
        yield error(
            "triton",
            f"{server.binary} does not start: {reason}",
            "install the library it names, or the nvidia-pytriton wheel again",
        )


def _vulnerabilities(found: tuple[int, ...]) -> Iterator[Finding]:
    if not found:
        yield warning(
            "vulnerabilities",
            f"Triton does not say its version; before {'.'.join(map(str, MENDED))} it is open to "
            "CVE-2025-23319, -23320, -23334, -23310 and -23311",
            "find out which one it is, and see docs/security.md",
        )
    elif found < MENDED:
        yield warning(
            "vulnerabilities",
            f"Triton {'.'.join(map(str, found))} is open to CVE-2025-23319, -23320 and -23334, and "
            "over HTTP to CVE-2025-23310 and -23311",
            "let only those reach it who may break it, without --http; NVIDIA's images from 25.07 "
            "on (docs/security.md) are mended",
        )


def _repository(settings: ServeSettings) -> Iterator[Finding]:
    try:
        verified = check_repository(settings.repository)
    except ServingError as problem:
        yield error("repository", str(problem))
        return
    manifest = _manifest(settings)
    engine, precision = manifest["request"]["engine"], manifest["precision"]
    yield good("repository", f"{engine} in {precision}, of {manifest['created']}")
    if not verified:
        yield from _verification(settings)
    library = _PACKAGES.get(engine, engine)
    made_with = str(manifest["request"]["versions"].get(library, "")).split("-")[0]
    try:
        there = version(library)
    except PackageNotFoundError:
        there = None
    if made_with and there and made_with != there:
        yield warning(
            "engines",
            f"made with {library} {made_with}, {there} is installed",
            "run `teran export` again",
        )


def _verification(settings: ServeSettings) -> Iterator[Finding]:
    """Of engines that were built where they could not be run."""
    try:
        text = (settings.repository / "verified.json").read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text)
        where = f"on {found['host'].get('gpu', 'this host')}, {found['date']}"
    except (OSError, ValueError, KeyError):
        yield warning(
            "verification",
            "the engines were built without a GPU, and have not been run yet",
            "`teran serve` checks them on its GPU before it begins; so does `teran verify`",
        )
        return
    if found["refused"]:
        yield error("verification", f"refused {where}: {found['refused']}", "export again")
    else:
        yield good("verification", f"checked {where}")


def _manifest(settings: ServeSettings) -> dict[str, Any]:
    """The manifest, or an empty one where there is none."""
    try:
        text = (settings.repository / "manifest.json").read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
    except (OSError, ValueError):
        return {"precision": "", "request": {"engine": "", "versions": {}}}
    return manifest


def _processor(settings: ServeSettings) -> Iterator[Finding]:
    cores, flags = settings.threads or available_cores(), _processor_flags()
    yield good("processor", f"{cores} cores")
    manifest = _manifest(settings)
    fast = _FAST.get(manifest["precision"])
    if fast and manifest["request"]["engine"] == "openvino" and not flags.intersection(fast):
        yield warning(
            "processor",
            f"{manifest['precision']} engines gain little here: none of {', '.join(fast)}",
            "compare with fp32: teran export --precision fp32, then teran profile",
        )


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _gpu(settings: ServeSettings) -> Iterator[Finding]:
    engine = _manifest(settings)["request"]["engine"]
    needed = engine in _GPU_ENGINES or settings.gallery_device != "cpu"
    try:
        ran = subprocess.run(_SMI, capture_output=True, text=True, check=False, timeout=20)
        found = [line.strip() for line in ran.stdout.splitlines()] if ran.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        found = []
    if found:
        yield good("gpu", "; ".join(found))
    elif needed:
        yield error(
            "gpu",
            "none is seen here, and these settings need one",
            "install NVIDIA's driver (in a container: --gpus all), or export for a CPU",
        )
    else:
        yield good("gpu", "none, and none is needed")


def _memory(settings: ServeSettings) -> Iterator[Finding]:
    try:
        host.require_shared_memory()
        free = shutil.disk_usage("/dev/shm").free
        yield good("shared memory", f"{free >> 20} MiB free in /dev/shm")
    except ServingError as problem:
        yield error("shared memory", str(problem))
    files = _manifest(settings).get("files", {})
    needed, free = sum(files.values()), psutil.virtual_memory().available
    if needed > free:
        yield error(
            "memory",
            f"{free >> 20} MiB available, the engines alone have {needed >> 20}",
            "stop what else runs here, or export in a smaller precision",
        )
    else:
        yield good("memory", f"{free >> 20} MiB available, engines have {needed >> 20}")


def _ports(settings: ServeSettings) -> Iterator[Finding]:
    if _answers(settings):
        yield error(
            "ports",
            f"a server runs here already: its health port {settings.health_port} answers",
            "`teran status` shows it; a second one needs other ports",
        )
        return
    ports = [(name, getattr(settings, name)) for name in settings.ports]
    for name, port in ports:
        try:
            if port:
                host.require_free(settings.host, port, f"--{name.replace('_', '-')}")
        except ServingError as problem:
            yield error("ports", str(problem))
            return
    numbers = ", ".join(str(port) for _, port in ports)
    yield good("ports", f"{numbers} on {settings.host} are free")


def _answers(settings: ServeSettings) -> bool:
    """Whether a supervisor of ours answers on the health port."""
    url = f"http://{settings.host}:{settings.health_port}/health/live"
    try:
        health = json.loads(fetch(url, timeout=2))
    except (OSError, ValueError):
        return False
    return isinstance(health, dict) and "models" in health


def _folders(_: ServeSettings) -> Iterator[Finding]:
    folder = Path(tempfile.gettempdir())
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
            probe.flush()
        yield good("temporary files", str(folder))
    except OSError as problem:
        yield error(
            "temporary files",
            f"{folder} can't be written: {problem.strerror}",
            "make room, or name another folder in TMPDIR",
        )


def _security(settings: ServeSettings) -> Iterator[Finding]:
    try:
        settings.require_safety()
        settings.security_arguments("key")
        read_key("TERAN_ADMIN_KEY", settings.admin_key_file)
    except ServingError as problem:
        yield error("security", str(problem))
        return
    if settings.is_exposed:
        yield warning(
            "security",
            f"{settings.host} can be reached from outside, without TLS or without a write key",
            "see --tls-certificate and --write-key-file of `teran serve`",
        )
    else:
        yield good("security", f"listens on {settings.host}")


def _leftovers(_: ServeSettings) -> Iterator[Finding]:
    if left := host.leftovers():
        yield warning(
            "leftovers",
            f"{len(left)} of servers that were killed: {left[0]}",
            "nothing to do: the next `teran serve` removes them",
        )


def _prometheus(_: ServeSettings) -> Iterator[Finding]:
    if found := shutil.which("prometheus"):
        yield good("prometheus", found)
    else:
        yield good(
            "prometheus",
            "not on this host",
            "only `make monitor` and some tests need it here (Debian: apt install prometheus)",
        )
