"""The one tree of errors the project raises on purpose.

Every message names the offending item and value and says what to do about it. Anything that
is not a `TeranError` is a defect.
"""


class TeranError(Exception):
    """Base of every error this project raises on purpose."""


class TeranInputError(TeranError, ValueError):
    """The caller passed something that can't be used; nothing was sent or changed."""


class TeranPhotoError(TeranInputError):
    """A photo can't be used."""


class TeranServerError(TeranError):
    """The server answered with an error, or not at all."""


class TeranUnavailableError(TeranServerError):
    """The server can't be reached or is not ready; the same call may work later."""


class TeranOverloadedError(TeranUnavailableError):
    """The server has more to do than it can answer soon; nothing was begun."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which the server expects to take the call."""


class TeranTimeoutError(TeranServerError, TimeoutError):
    """The deadline of a call passed before its answer came."""


class CheckpointError(TeranError):
    """A checkpoint or a bundle can't be read as a TERAN model."""


class ExportError(TeranError):
    """A graph or an engine could not be made, or did not pass its checks."""


class ServingError(TeranError):
    """The Triton server can't be started or kept running."""


class GalleryError(TeranError):
    """A gallery can't be opened, read or written."""


class GalleryBusyError(GalleryError):
    """A gallery does not take writes just now; the same write may work later."""


class GalleryUnreachableError(GalleryError):
    """A gallery's cluster does not answer; what was asked of it may have been done."""


class MissingExtraError(TeranError, ImportError):
    """A part of the project was used whose optional dependencies are not installed."""
