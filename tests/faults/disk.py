"""A directory on a disk that loses its power or is full; see disk.c."""

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk.c")
_PAGE = 4096
Choose = Callable[[], bool]
"""Whether something that was not synced is there nevertheless."""


def build(folder: Path) -> Path:
    """Compile the library to be preloaded; skips where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "disk.so"
    flags = ["-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run([compiler, *flags], check=True)
    return library


def environment(library: Path, root: Path, shadow: Path | None = None) -> dict[str, str]:
    """Of a process whose directory `root` is watched."""
    added = {"LD_PRELOAD": str(library), "DISK_ROOT": str(root)}
    if shadow:
        shadow.mkdir()
        added["DISK_SHADOW"] = str(shadow)
    return os.environ | added


class PowerCut:
    """What a loss of power leaves of a directory.

    Whatever was synced is there. What was not is there where `name` (for every name that was added,
    removed or moved), `size` (for that of a file) or `page` (for every 4 KiB of it) says so, as the
    kernel may have written it by itself.
    """

    def __init__(
        self, library: Path, root: Path, shadow: Path, name: Choose, size: Choose, page: Choose
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._shadow, self._name, self._size, self._page = shadow, name, size, page
        self._root, self._live = self._key(root), {self._key(root): root}
        self._live |= {self._key(path): path for path in root.rglob("*")}

    def leave(self, target: Path) -> None:
        """Write what is left to a new directory."""
        self._leave_directory(self._root, target)

    def _key(self, path: Path) -> str:
        key = ctypes.create_string_buffer(80)
        assert self._library.disk_key(os.fsencode(path), key, len(key)) == 0
        return key.value.decode()

    def _leave_directory(self, key: str, target: Path) -> None:
        target.mkdir()
        synced, latest = self._synced_names(key), self._latest_names(key)
        for name in sorted(synced.keys() | latest.keys()):
            is_same = synced.get(name) == latest.get(name)
            entry = (latest if is_same or self._name() else synced).get(name)
            if entry is None:
                continue
            kind, child = entry
            if kind == "d":
                self._leave_directory(child, target / name)
            else:
                (target / name).write_bytes(self._content(child))

    def _synced_names(self, key: str) -> dict[str, tuple[str, str]]:
        path = self._shadow / f"{key}.names"
        lines = path.read_text().splitlines() if path.exists() else []
        entries = (line.split(" ", 2) for line in lines)
        return {name: (kind, child) for kind, child, name in entries}

    def _latest_names(self, key: str) -> dict[str, tuple[str, str]]:
        directory = self._live.get(key)
        paths = sorted(directory.iterdir()) if directory else []
        return {path.name: ("d" if path.is_dir() else "f", self._key(path)) for path in paths}

    def _content(self, key: str) -> bytes:
        path, live = self._shadow / f"{key}.data", self._live.get(key)
        synced = path.read_bytes() if path.exists() else b""
        latest = live.read_bytes() if live else synced
        size = len(latest) if self._size() else len(synced)
        pages = []
        for start in range(0, size, _PAGE):
            old, new = (one[start : start + _PAGE].ljust(_PAGE, b"\0") for one in (synced, latest))
            pages.append(new if old == new or self._page() else old)
        return b"".join(pages)[:size]


def never() -> bool:
    return False


def always() -> bool:
    return True


def sometimes(seed: int) -> Choose:
    dice = random.Random(seed)
    return lambda: dice.random() < 0.5


OUTCOMES: dict[str, Callable[[int], tuple[Choose, Choose, Choose]]] = {
    "nothing more": lambda _: (never, never, never),
    "all names, no data": lambda _: (always, always, never),
    "by chance": lambda seed: (sometimes(seed), always, sometimes(seed + 1)),
}
"""What is left beyond what was synced, given a seed: choices of names, sizes and pages. A file's
size goes to the disk with its name, in one journal."""
