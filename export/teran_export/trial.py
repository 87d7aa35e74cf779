"""Tries one precision after the other, and takes the fastest that passes its gate."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from teran.errors import ExportError


class Check(Protocol):
    """What a precision keeps, and what it costs."""

    @property
    def milliseconds(self) -> float | None:
        """None where that was not measured."""

    def failure(self) -> str | None:
        """Why the precision must not be served, or None."""

    def summary(self) -> str:
        """The figures, in a few words."""


C = TypeVar("C", bound=Check)


def try_all(
    what: str, precisions: Sequence[str], attempt: Callable[[str], C], report: Callable[[str], None]
) -> tuple[str, dict[str, C]]:
    """Build and check every precision.

    Args:
        what: is built.
        precisions: what to try.
        attempt: builds in a precision, and checks what was built.
        report: told of each.

    Returns:
        The one to serve, and the checks of all that could be built.

    Raises:
        ExportError: none passes.
    """
    checks: dict[str, C] = {}
    refused: dict[str, str] = {}
    for precision in precisions:
        report(f"building and checking {what} in {precision}")
        try:
            check = checks[precision] = attempt(precision)
        except ExportError as error:
            refused[precision] = str(error)
            report(f"  {error}")
            continue
        failure = check.failure()
        report(f"  {check.summary()}: {failure or 'passes'}")
        if failure:
            refused[precision] = failure
    chosen = fastest(checks)
    if chosen is None:
        reasons = "; ".join(f"{precision}: {reason}" for precision, reason in refused.items())
        raise ExportError(f"nothing published, no precision of {what} passed: {reasons}")
    return chosen, checks


def fastest(checks: Mapping[str, Check]) -> str | None:
    """The fastest precision that passes, or None where none does."""
    passing = [precision for precision, check in checks.items() if not check.failure()]
    return min(passing, key=lambda p: checks[p].milliseconds or 0.0, default=None)
