"""The manifest of a published repository: what it was made from, and how well it fits."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from teran.resources import REPOSITORY_FORMAT

NAME = "manifest.json"
ANSWERS = "answers.npz"
"""What the model answers, for engines that are checked where they are served."""
DETECTOR_ANSWERS = "detector_answers.npz"
"""What the detector answers, likewise."""


@dataclass(frozen=True)
class Manifest:
    """Everything that decides whether a published repository is still the right one."""

    request: dict[str, Any]
    """What was asked for: bundle, engine, precision, limits, library versions, sources."""
    precision: str
    """The precision that was chosen."""
    created: str
    pooling: str
    graphs: dict[str, float] = field(default_factory=dict)
    """Largest difference of each ONNX graph from PyTorch, relative where values exceed 1."""
    checks: dict[str, Any] = field(default_factory=dict)
    """Per precision tried: cosine, recall change, time, and why it was refused, if it was."""
    detector: dict[str, Any] | None = None
    """Of what takes photos, where there is that: config, precision, graphs and checks."""
    files: dict[str, int] = field(default_factory=dict)
    """Every published file and its size in bytes."""
    verified: bool = True
    """Whether the engines were run where they were built, rather than the graphs they are of."""
    format: int = REPOSITORY_FORMAT
    """Which versions of `teran serve` take it."""

    def write(self, directory: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2)
        (directory / NAME).write_text(text + "\n", encoding="utf-8")

    def is_current(self, directory: Path, request: dict[str, Any]) -> bool:
        """Whether the repository in `directory` is whole, and was made from `request`."""
        return self.request == request and all(
            (path := directory / name).is_file() and path.stat().st_size == size
            for name, size in self.files.items()
        )


def read(directory: Path) -> Manifest | None:
    """Read a repository's manifest; None where there is none that can be read."""
    try:
        return Manifest(**json.loads((directory / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def hash_tree(*folders: Path) -> str:
    """SHA-256 over the names and contents of all files at or below `folders`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
