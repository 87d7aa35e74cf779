"""Checks a published repository before a server is started on it."""

import json
from pathlib import Path

from teran.errors import ServingError
from teran.resources import REPOSITORY_FORMAT


def check_repository(repository: Path) -> bool:
    """Check that a published repository is whole, and can be served by this version.

    Returns:
        Whether its engines were run where they were built.

    Raises:
        ServingError: it is missing, a file of it is, or another version published it.
    """
    if not repository.is_dir():
        raise ServingError(f"no model repository at {repository}; make one with `teran export`")
    try:
        manifest = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ServingError(
            f"{repository} was not published by `teran export`: its manifest.json can't be read"
        ) from error
    if manifest.get("format") != REPOSITORY_FORMAT:
        raise ServingError(
            f"{repository} was published by another version of TERAN Serving (its format is "
            f"{manifest.get('format', 1)}, this one serves {REPOSITORY_FORMAT}): publish it again "
            "with `teran export`"
        )
    for name, size in files.items():
        path = repository / name
        if not path.is_file():
            raise ServingError(f"{path} is missing; publish the repository again")
        if path.stat().st_size != size:
            raise ServingError(
                f"{path} has {path.stat().st_size} bytes instead of {size}; "
                "publish the repository again"
            )
    return bool(manifest.get("verified", True))
