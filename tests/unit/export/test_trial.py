"""Which precision is taken of those that were tried."""

from dataclasses import dataclass

import pytest
from teran_export.trial import try_all

from teran.errors import ExportError


@dataclass
class Found:
    """What came of a precision."""

    milliseconds: float | None
    wrong: str | None = None

    def failure(self) -> str | None:
        return self.wrong

    def summary(self) -> str:
        return f"{self.milliseconds} ms"


FOUND = {"fp32": Found(9.0), "bf16": Found(5.0), "int8": Found(1.0, "it is off")}


def attempt(precision: str) -> Found:
    if precision not in FOUND:
        raise ExportError(f"no {precision} here")
    return FOUND[precision]


def test_the_fastest_that_passes_is_taken() -> None:
    told: list[str] = []
    chosen, checks = try_all("it", ["fp8", "fp32", "bf16", "int8"], attempt, told.append)
    assert chosen == "bf16"
    assert checks == FOUND
    assert told[:4] == [
        "building and checking it in fp8", "  no fp8 here",
        "building and checking it in fp32", "  9.0 ms: passes",
    ]  # fmt: skip
    assert told[-1] == "  1.0 ms: it is off"


def test_where_none_passes_it_says_why() -> None:
    with pytest.raises(ExportError) as caught:
        try_all("it", ["fp8", "int8"], attempt, print)
    assert str(caught.value) == (
        "nothing published, no precision of it passed: fp8: no fp8 here; int8: it is off"
    )
