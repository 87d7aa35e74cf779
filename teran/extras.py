"""Optional dependencies: a missing one ends in one sentence that names the command to run."""

from collections.abc import Iterator
from contextlib import contextmanager

from teran.errors import MissingExtraError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn an ImportError in the block into a `MissingExtraError` naming the `extra`."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; run: pip install 'teran-serving[{extra}]'"
        ) from error
