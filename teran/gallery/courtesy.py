"""Writes let searches go first, but not for ever."""

import threading

_PATIENCE = 0.02
"""Seconds a write waits at most for searches between two steps."""


class Courtesy:
    """A block that is entered while something is searched; steps of writes wait outside."""

    def __init__(self) -> None:
        self._quiet = threading.Event()
        self._quiet.set()

    def __enter__(self) -> None:
        self._quiet.clear()

    def __exit__(self, *_: object) -> None:
        self._quiet.set()

    def give_way(self) -> None:
        """Wait until nothing is searched, or long enough."""
        self._quiet.wait(_PATIENCE)
