"""What `teran doctor` looks at on behalf of the galleries, which the supervisor does not know."""

import os
import shutil
from collections.abc import Iterator

from teran.gallery.embedded.files import RESERVE
from teran.gallery.embedded.lock import holder_of
from teran.gallery.search.kernels import NativeKernel, kernel
from teran.supervisor.doctor import Finding, error, good, warning
from teran.supervisor.settings import ServeSettings


def _kernel(_: ServeSettings) -> Iterator[Finding]:
    chosen = kernel()
    if isinstance(chosen, NativeKernel):
        yield good("gallery kernel", chosen.name)
    else:
        yield warning(
            "gallery kernel",
            f"searches use {chosen.name}, not the compiled kernel",
            "install gcc and libc6-dev, then install teran-serving again",
        )


def _gallery(settings: ServeSettings) -> Iterator[Finding]:
    if settings.gallery_url:
        yield good("gallery", f"in the cluster at {settings.gallery_url}; not looked at")
        return
    directory = settings.gallery_directory()
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield error(
            "gallery",
            f"{there} can't be written by this user",
            "change its owner, or name another directory with --gallery",
        )
        return
    if holder := holder_of(directory):
        yield error(
            "gallery",
            f"{directory} is in use by {holder}",
            "stop that server first, or name another directory with --gallery",
        )
        return
    free = shutil.disk_usage(there).free
    if free < 2 * RESERVE:
        yield warning(
            "gallery",
            f"{free >> 20} MiB free at {directory}; writes are refused below {RESERVE >> 20}",
            "make room, or name another directory with --gallery",
        )
    else:
        yield good("gallery", f"{directory}, {free >> 30} GiB free")


CHECKS = (_kernel, _gallery)
