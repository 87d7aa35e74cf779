"""What a model process logs: JSON, one object a line, which the supervisor writes on."""

import logging
import os
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from teran.errors import (
    GalleryBusyError,
    GalleryUnreachableError,
    TeranError,
    TeranInputError,
    TeranOverloadedError,
    TeranTimeoutError,
)
from teran.runtime.environment import LOG_LEVEL_VARIABLE, LogLevel
from teran.runtime.request import id_of


class RequestLog:
    """Tells how requests went, each by the id that its client gave it.

    Those that failed are logged at the level error, by a gallery that is busy at warning, refused
    ones at info and answered ones at debug. What our other modules log goes the same way.
    """

    def __init__(self, model: str) -> None:
        """Log for a model, at the level the environment says."""
        handler = logging.StreamHandler()
        handler.setFormatter(
            JsonFormatter(
                "%(levelname)s %(message)s",
                prefix="\n",  # Triton may be in the middle of a line of its own
                timestamp="time",
                static_fields={"source": model},
                rename_fields={"levelname": "level", "exc_info": "exception"},
            )
        )
        log = logging.getLogger("teran")
        log.handlers, log.propagate = [handler], False
        log.setLevel(os.environ.get(LOG_LEVEL_VARIABLE, LogLevel.WARNING).upper())
        self._log = log.getChild("requests")

    def request(
        self, request: Any, seconds: float, error: BaseException | None = None, **details: object
    ) -> None:
        """Tell of one request.

        Args:
            request: Triton's.
            seconds: what the execution it was part of took.
            error: why it was not answered.
            details: what else to tell.
        """
        level = _level(error)
        if self._log.isEnabledFor(level):
            fields = {"request_id": id_of(request), "milliseconds": round(1e3 * seconds, 3)}
            self._log.log(
                level,
                "answered" if error is None else str(error) or type(error).__name__,
                exc_info=_defect(error),
                extra=fields | details,
            )

    def defect(self, request_id: str, error: BaseException) -> None:
        """Tell of an error that another model answers with, if it is of our own making."""
        if defect := _defect(error):
            self._log.error(str(error), exc_info=defect, extra={"request_id": request_id})


def _defect(error: BaseException | None) -> BaseException | None:
    """What an error comes of, where that is none of those we expect."""
    defect = error and (error.__cause__ or error)
    is_expected = _level(error) < logging.ERROR or isinstance(defect, TeranError | OSError)
    return None if is_expected else defect


def _level(error: BaseException | None) -> int:
    if error is None:
        return logging.DEBUG
    if isinstance(error, TeranInputError | TeranOverloadedError | TeranTimeoutError):
        return logging.INFO
    return (
        logging.WARNING
        if isinstance(error, GalleryBusyError | GalleryUnreachableError)
        else logging.ERROR
    )
