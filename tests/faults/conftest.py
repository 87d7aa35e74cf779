"""The same real server as in tests/server."""

from tests.server.conftest import repository

__all__ = ["repository"]
