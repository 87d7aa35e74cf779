"""What an engine's inputs are refused for."""

import json
from typing import Any

import numpy as np
import pytest

from teran.errors import TeranInputError
from teran.runtime.input_checks import InputChecks

PARAMETERS = {
    "shapes": json.dumps({"pixels": [None, "height"], "mask": ["height"], "ids": ["words"]}),
    "axes": json.dumps({"height": [32, 96, 32], "words": [1, 5, 1]}),
    "values": json.dumps({"ids": [0, 9]}),
}


def check(batched: bool = True, **inputs: Any) -> None:
    def is_finite(value: Any) -> bool:
        return bool(np.isfinite(value).all())

    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    InputChecks(PARAMETERS | {"max_cells": "50"}, batched=batched).check(arrays, is_finite)


def test_what_fits_passes() -> None:
    check(pixels=np.zeros((1, 1, 32)), mask=np.ones((1, 32), bool))
    check(ids=[[0, 9, 3]])
    check(other=np.zeros((7, 7)))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"pixels": np.zeros((1, 1, 128))}, "pixels has 128 height; at most 96"),
        ({"pixels": np.zeros((1, 1, 33))}, "33 height; at least 32 are needed, and multiples"),
        ({"pixels": np.zeros((1, 1, 32)), "mask": np.ones((1, 64))}, "their number of height"),
        ({"pixels": np.full((1, 1, 32), np.nan)}, "pixels holds NaN or infinite"),
        ({"pixels": np.zeros((1, 0, 32))}, r"the empty shape \[1, 0, 32\]"),
        ({"ids": [[0, 10]]}, "ids must lie within 0 and 9, but holds values from 0 to 10"),
        ({"ids": [[-1]]}, "from -1 to -1"),
        ({"ids": [[1] * 6]}, "ids has 6 words; at most 5"),
    ],
)
def test_what_does_not_is_named(inputs: dict[str, Any], reason: str) -> None:
    with pytest.raises(TeranInputError, match=reason):
        check(**inputs)


def test_without_a_batch_products_are_bounded() -> None:
    with pytest.raises(TeranInputError, match="asks for 64 cosines; at most 50"):
        check(batched=False, one=np.zeros((2, 4, 3)), other=np.zeros((2, 4, 3)))
