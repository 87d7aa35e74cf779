"""Keys: from files or the environment, never from a command line, which all of a host can read.

What this host's own clients need is left in a file that only the server's user can read.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from teran.errors import ServingError

VARIABLES = ("TERAN_WRITE_KEY", "TERAN_ADMIN_KEY", "TERAN_GALLERY_API_KEY")
"""Of the environment that hold a key; with _FILE at the end, the file that holds it."""


def read_key(variable: str, file: Path | None) -> str | None:
    """A key from its file, else from the environment, else None.

    Raises:
        ServingError: the file can't be read, or what is given is no key.
    """
    source, key = variable, os.environ.get(variable)
    if file is not None:
        source = str(file)
        try:
            key = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ServingError(f"the key in {file} can't be read: {error}") from error
    if key is None:
        return None
    key = key.strip()
    if not key:
        raise ServingError(f"{source} is empty, which is no key; take it away, or write one there")
    if not key.isascii() or not key.isprintable() or any(c in ' ;:="' for c in key):
        raise ServingError(f"the key in {source} may have letters, digits and most signs only")
    return key


def leave_key(port: int, key: str) -> Path:
    """Leave the key of a server for clients of the same user.

    Raises:
        ServingError: it can't be written where nobody else can read it.
    """
    try:
        path = own_folder() / str(port)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(key)
    except OSError as error:
        raise ServingError(f"the key can't be left for clients: {error}") from error
    return path


def find_key(port: int) -> str | None:
    """The key that a server of the same user on this host has left, or None."""
    with suppress(OSError, ServingError):
        return (own_folder() / str(port)).read_text(encoding="utf-8")
    return None


def own_folder() -> Path:
    """A folder that servers and clients of this user on this host share, and nobody else reads.

    Raises:
        OSError: it can't be made.
        ServingError: somebody else could have made it, or could read it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        folder = Path(runtime) / "teran"
    else:
        folder = Path(tempfile.gettempdir()) / f"teran-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise ServingError(f"{folder} is not a folder of this user alone; remove it")
    return folder
