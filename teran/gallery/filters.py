"""`where`: which items may be found, as JSON that a person can write.

{"label": "dog"}                              equals
{"label": {"in": ["dog", "cat"]}}             one of
{"year": {"gte": 2000, "lt": 2010}}           range
{"label": "dog", "camera.model": "X100"}      all of them; dots lead into objects
"""

import json
import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Protocol, TypeGuard

from teran.errors import TeranInputError

MAX_FILTER_BYTES = 1 << 16
_BOUNDS = ("gt", "gte", "lt", "lte")
_PATH = re.compile(r"[\w-]+(\.[\w-]+)*")
_INTEGERS = range(-(2**63), 2**63)


def parse_where(data: str | bytes) -> dict[str, Any]:
    """Read a filter's JSON.

    Raises:
        TeranInputError: it is not one, or a condition makes no sense.
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
    to_filter(where, _NoDialect())
    return where


class Dialect(Protocol):
    """How one of Qdrant's libraries writes a filter."""

    def all_of(self, conditions: list[Any]) -> Any: ...
    def any_of(self, conditions: list[Any]) -> Any: ...
    def equals(self, path: str, value: str | int) -> Any: ...
    def one_of(self, path: str, values: list[Any]) -> Any:
        """The values are all text, or all whole numbers."""

    def within(self, path: str, bounds: dict[str, float | None]) -> Any:
        """`bounds` are by gt, gte, lt and lte."""


class _NoDialect:
    """Writes nothing, so that a filter is only checked."""

    def all_of(self, conditions: list[Any]) -> None: ...
    def any_of(self, conditions: list[Any]) -> None: ...
    def equals(self, path: str, value: str | int) -> None: ...
    def one_of(self, path: str, values: list[Any]) -> None: ...
    def within(self, path: str, bounds: dict[str, float | None]) -> None: ...


def to_filter(where: Mapping[str, Any], dialect: Dialect) -> Any:
    """Translate for a store.

    Raises:
        TeranInputError: a condition makes no sense.
    """
    return dialect.all_of([_condition(key, test, dialect) for key, test in where.items()])


def _condition(key: str, test: object, dialect: Dialect) -> Any:
    path = f"metadata.{key}"
    if not _PATH.fullmatch(key):
        raise TeranInputError(
            f"where[{key[:64]!r}]: keys have letters, digits, _ and -, and dots in between"
        )
    if isinstance(test, dict):
        if set(test) == {"in"} and isinstance(test["in"], list):
            return _one_of(key, test["in"], dialect)
        if test and set(test) <= set(_BOUNDS) and all(_is_number(x) for x in test.values()):
            bounds = {name: float(test[name]) if name in test else None for name in _BOUNDS}
            return dialect.within(path, bounds)
        raise TeranInputError(
            f'where[{key!r}] is {str(test)[:80]}; expected a value, {{"in": [...]}}, or numbers '
            f"for {', '.join(_BOUNDS)}"
        )
    if isinstance(test, float) and isfinite(test):
        return dialect.within(path, {"gte": test, "lte": test, "gt": None, "lt": None})
    if isinstance(test, bool):
        return dialect.equals(f"flags.{key}", _word(test))
    if _is_word(test):
        return dialect.equals(path, test)
    raise TeranInputError(
        f"where[{key!r}] is {str(test)[:80]!r}, expected text, a number of 64 bits, true or false"
    )


def _one_of(key: str, values: list[Any], dialect: Dialect) -> Any:
    """Values of several types are alternatives of each type."""
    if not all(map(_is_word, values)):
        raise TeranInputError(
            f"where[{key!r}]: 'in' takes texts, whole numbers of 64 bits, true or false"
        )
    texts = [value for value in values if isinstance(value, str)]
    numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    truths = [_word(value) for value in values if isinstance(value, bool)]
    tests: list[Any] = []
    if texts or not values:
        tests.append(dialect.one_of(f"metadata.{key}", texts))
    if numbers:
        tests.append(dialect.one_of(f"metadata.{key}", numbers))
    if truths:
        tests.append(dialect.one_of(f"flags.{key}", truths))
    return dialect.any_of(tests)


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
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) if isinstance(value, float) else value in _INTEGERS


def _is_word(value: object) -> TypeGuard[str | int]:
    """Whether it is a text that can be written as UTF-8, or an integer of 64 bits."""
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, int) and value in _INTEGERS
