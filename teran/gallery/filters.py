"""`where`: which items may be found, as JSON that a person can write.

{"label": "dog"}                              equals
{"label": {"in": ["dog", "cat"]}}             one of
{"year": {"gte": 2000, "lt": 2010}}           range
{"label": "dog", "camera.model": "X100"}      all of them; dots lead into objects
"""

import json
from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge

from teran.errors import TeranInputError

MAX_FILTER_BYTES = 1 << 20
_BOUNDS = ("gt", "gte", "lt", "lte")


def parse_where(data: str | bytes) -> dict[str, Any]:
    """Read a filter's JSON.

    Raises:
        TeranInputError: it is not one.
    """
    if len(data) > MAX_FILTER_BYTES:
        raise TeranInputError(
            f"where has {len(data)} bytes; at most {MAX_FILTER_BYTES} are accepted"
        )
    try:
        where = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TeranInputError(f"where is not JSON: {error}") from error
    if not isinstance(where, dict):
        raise TeranInputError(f"where is {type(where).__name__}, expected an object")
    return where


def to_filter(where: Mapping[str, Any]) -> edge.Filter:
    """Translate for the store.

    Raises:
        TeranInputError: a condition makes no sense.
    """
    return edge.Filter(must=[_condition(key, test) for key, test in where.items()])


def _condition(key: str, test: object) -> Any:
    path = f"metadata.{key}"
    if isinstance(test, dict):
        if set(test) == {"in"} and isinstance(test["in"], list):
            return _one_of(path, key, test["in"])
        if test and set(test) <= set(_BOUNDS) and all(_is_number(x) for x in test.values()):
            bounds = {name: float(test[name]) if name in test else None for name in _BOUNDS}
            return edge.FieldCondition(key=path, range=edge.RangeFloat(**bounds))
        raise TeranInputError(
            f'where[{key!r}] is {str(test)[:80]}; expected a value, {{"in": [...]}}, or numbers '
            f"for {', '.join(_BOUNDS)}"
        )
    if isinstance(test, float):
        bounds = {"gte": test, "lte": test, "gt": None, "lt": None}
        return edge.FieldCondition(key=path, range=edge.RangeFloat(**bounds))
    if isinstance(test, bool):
        return edge.FieldCondition(key=f"flags.{key}", match=edge.MatchValue(_word(test)))
    if isinstance(test, str | int):
        return edge.FieldCondition(key=path, match=edge.MatchValue(test))
    raise TeranInputError(f"where[{key!r}] is {test!r}, expected text, a number, true or false")


def _one_of(path: str, key: str, values: list[Any]) -> Any:
    """Values of several types are alternatives of each type."""
    if not all(isinstance(value, str | int) for value in values):
        raise TeranInputError(f"where[{key!r}]: 'in' takes texts, whole numbers, true or false")
    texts = [value for value in values if isinstance(value, str)]
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    truths = [_word(value) for value in values if isinstance(value, bool)]
    tests: list[Any] = []
    if texts or not values:
        tests.append(edge.FieldCondition(key=path, match=edge.MatchAny(texts)))
    if numbers:
        tests.append(edge.FieldCondition(key=path, match=edge.MatchAny(numbers)))
    if truths:
        tests.append(edge.FieldCondition(key=f"flags.{key}", match=edge.MatchAny(truths)))
    return edge.Filter(should=tests)


def flags(metadata: object) -> Any:
    """The truth values of metadata, as words and in the same places; None where it has none.

    They are stored beside the metadata, as the store's binding takes true for 1 in a filter.
    """
    if isinstance(metadata, bool):
        return _word(metadata)
    if isinstance(metadata, Mapping):
        found = {key: words for key, one in metadata.items() if (words := flags(one)) is not None}
        return found or None
    if isinstance(metadata, list):
        return [words for one in metadata if (words := flags(one)) is not None] or None
    return None


def _word(truth: bool) -> str:
    return "true" if truth else "false"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
