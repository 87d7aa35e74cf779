"""Finds a Triton server on this host and lays out the backends it needs.

In order: `tritonserver` on PATH, NVIDIA's container location, the `nvidia-pytriton` wheel (whose
binary is used, not its Python API).
"""

import ctypes
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from teran.errors import ServingError
from teran.resources import BACKENDS

_NVIDIA = Path("/opt/tritonserver")
_WHEELS = {"0.7.0": (2, 51, 0)}
"""Triton's version in releases of nvidia-pytriton."""
_NUMBERS = re.compile(r"\d+")
_STUB = "triton_python_backend_stub"
_PRELOAD = Path(__file__).with_name("preload") / "libpreload.so"
"""Mends Triton where it can't be mended otherwise; compiled where the build found a compiler."""


@dataclass(frozen=True)
class TritonInstallation:
    """A server binary, where its own backends are, and the libraries it needs."""

    binary: Path
    backends: Path
    libraries: tuple[Path, ...] = ()
    stub: Path | None = None
    """The Python backend's stub for this interpreter, where it isn't beside the backend."""

    @property
    def version(self) -> tuple[int, ...]:
        """Triton's own, as in (2, 51, 0); empty where it does not say."""
        named = self.backends.parent / "TRITON_VERSION"  # in NVIDIA's image
        if named.is_file():
            return tuple(int(part) for part in _NUMBERS.findall(named.read_text()))
        with suppress(PackageNotFoundError):
            if self.stub is not None:
                return _WHEELS.get(version("nvidia-pytriton"), ())
        return ()

    def environment(self) -> dict[str, str]:
        """The environment the server must be started with.

        The stub runs the first `python3` on PATH, so this interpreter's directory comes first.
        """
        environment = dict(os.environ)
        paths = [str(path) for path in self.libraries]
        if has_preload():
            paths.append(str(_PRELOAD.parent))
            # By its name alone: a path with a space in it can't be preloaded.
            preloaded = f"{_PRELOAD.name} {environment.get('LD_PRELOAD', '')}"
            environment["LD_PRELOAD"] = preloaded.strip()
        if library := _python_library():
            paths.append(str(library))
        known = environment.get("LD_LIBRARY_PATH")
        environment["LD_LIBRARY_PATH"] = os.pathsep.join([*paths, *([known] if known else [])])
        binaries = str(Path(sys.executable).parent)
        environment["PATH"] = os.pathsep.join([binaries, environment.get("PATH", os.defpath)])
        return environment

    def lay_out_backends(self, directory: Path) -> None:
        """Fill `directory` with the server's backends, and stand-ins for those it lacks.

        With real files: Triton refuses a library that a link takes out of the directory.
        """
        for source in (self.backends, BACKENDS):
            for backend in source.iterdir():
                target = directory / backend.name
                if backend.is_dir() and not target.exists():
                    ignore = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(backend, target, copy_function=_link_or_copy, ignore=ignore)
        if self.stub is not None:
            _link_or_copy(self.stub, directory / "python" / _STUB)


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def find() -> TritonInstallation:
    """Find a server.

    Raises:
        ServingError: there is none; the message says how to get one.
    """
    for binary in (shutil.which("tritonserver"), _NVIDIA / "bin" / "tritonserver"):
        if binary and Path(binary).is_file():
            root = Path(binary).resolve().parent.parent
            return TritonInstallation(Path(binary).resolve(), root / "backends")
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError(
            "no tritonserver on PATH, in /opt/tritonserver or in the nvidia-pytriton wheel; "
            "run: pip install 'teran-serving[server]'"
        )
    package = Path(spec.submodule_search_locations[0])
    root = package / "tritonserver"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / python / _STUB
    if not stub.is_file():
        raise ServingError(f"the nvidia-pytriton wheel has no backend stub for Python {python}")
    libraries = (package.parent / "nvidia_pytriton.libs",)
    return TritonInstallation(root / "bin" / "tritonserver", root / "backends", libraries, stub)


def has_preload() -> bool:
    """Whether the library that mends Triton is there, and fits this system."""
    with suppress(OSError):
        ctypes.CDLL(str(_PRELOAD))
        return True
    return False


def _python_library() -> Path | None:
    """The directory of libpython, which the stub needs; None where only the loader finds it.

    This interpreter's own comes first: another patch release's may lack what its modules need.

    Raises:
        ServingError: it is nowhere.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    candidates = [sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix) / "lib")]
    for folder in filter(None, candidates):
        if (Path(folder) / name).is_file():
            return Path(folder)
    with suppress(OSError):
        ctypes.CDLL(name)
        return None
    package = name.split(".so")[0]
    raise ServingError(
        f"Triton's Python backend needs {name}, which this Python comes without; install your "
        f"system's {package} package (Debian: apt-get install {package})"
    )
