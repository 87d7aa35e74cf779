"""Where the sources of the Triton models and backends lie: in a checkout, or in an installation."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def _folder(name: str) -> Path:
    checkout = _PACKAGE.parent / name
    return checkout if checkout.is_dir() else _PACKAGE / "_data" / name


REPOSITORY_FORMAT = 6
"""Of published repositories. It rises when the code or tensors of models change, so that one which
was published before can't be served any more."""
MODEL_REPOSITORY = _folder("model_repository")
BACKENDS = _folder("backends")
