"""Compiles the gallery's native kernel when the package is built or installed for development.

Without a compiler, or on another processor, the package is built without it: searches then run on
numpy, slower and with the same results.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("teran/gallery/search/kernels/scan.c")
FLAGS = ("-O2", "-fno-strict-aliasing", "-shared", "-fPIC")
LIBRARY = SOURCE.with_name("libscan.so")


class KernelHook(BuildHookInterface[Any]):
    """Builds `libscan.so` beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and have a wheel carry the result and name its platform."""
        if self.target_name != "wheel":
            return
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if platform.machine() != "x86_64" or not compiler:
            self.app.display_warning("building without the native search kernel")
            return
        root = Path(self.root)
        made = LIBRARY.with_suffix(".new.so")  # one that a process has mapped must not change
        command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if result.returncode:
            self.app.display_warning(f"the native search kernel does not build: {result.stderr}")
            return
        (root / made).replace(root / LIBRARY)
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        # The library is no Python extension: one wheel serves every version of Python.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_')}"
