"""Compiles the native libraries when the package is built or installed for development.

Without a compiler, or on another processor, the package is built without them: searches then run on
numpy, slower and with the same results, and Triton is served with its faults.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARIES = {
    "teran/gallery/search/kernels/libscan.so": ["scan.c"],
    "teran/supervisor/preload/libpreload.so": ["discretion.c", "patience.c"],
}
"""Each lies beside its sources."""
FLAGS = ("-O2", "-fno-strict-aliasing", "-shared", "-fPIC")


class NativeHook(BuildHookInterface[Any]):
    """Builds every library beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and have a wheel carry the results and name its platform."""
        if self.target_name != "wheel":
            return
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if platform.machine() != "x86_64" or not compiler:
            self.app.display_warning("building without the native libraries")
            return
        for name, sources in LIBRARIES.items():
            if self._compile(compiler, Path(name), sources):
                build_data["artifacts"].append(name)
                build_data["pure_python"] = False
                # They are no Python extensions: one wheel serves every version of Python.
                platform_tag = sysconfig.get_platform().replace("-", "_")
                build_data["tag"] = f"py3-none-{platform_tag}"

    def _compile(self, compiler: str, library: Path, sources: list[str]) -> bool:
        root = Path(self.root)
        made = library.with_suffix(".new.so")  # one that a process has mapped must not change
        inputs = [str(library.with_name(source)) for source in sources]
        command = [compiler, *FLAGS, "-o", str(made), *inputs]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if result.returncode:
            self.app.display_warning(f"{library} does not build: {result.stderr}")
            return False
        (root / made).replace(root / library)
        return True
