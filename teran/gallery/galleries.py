"""All galleries of a directory: their names, aliases and snapshots, and the thread that writes.

galleries/<name>/gallery.json, store/, compact/
aliases.json
snapshots/<name>-<time>.tar
LOCK                                   held, and named its holder, while a process runs
"""

import fcntl
import json
import logging
import os
import queue
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from teran.errors import GalleryBusyError, GalleryError, TeranError, TeranInputError
from teran.gallery.gallery import Gallery, Model, create_gallery, read_description
from teran.gallery.item import Item
from teran.gallery.kernels import Kernel
from teran.gallery.pooling import Kind

DEFAULT = "default"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_UNFINISHED = re.compile(r"\.[a-z0-9][a-z0-9_-]{0,63}\.(new|dropped)")
"""A gallery that was never finished being made, or removed."""
_OWN = {"galleries", "aliases.json", "aliases.json.new", "snapshots", "LOCK", "lost+found"}
_LARGEST_COMMIT = 256
"""Items written together."""
_IDLE = 0.5
"""Seconds without writes after which the writer looks after the galleries."""
_log = logging.getLogger(__name__)


@dataclass
class _Job:
    """Something for the writing thread."""

    future: "Future[Any]"
    gallery: Gallery | None = None
    upserts: Sequence[Item] = ()
    deletes: Sequence[str] = ()
    action: Callable[[], Any] | None = None
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = len(self.upserts) + len(self.deletes)


class Galleries:
    """Opens a directory for this process alone. Close it to bring everything to the disk."""

    def __init__(self, root: Path, model: Model, kernel: Kernel, *, flush: bool = False) -> None:
        """Open all galleries of the model.

        Raises:
            GalleryError: another process holds the directory, or it holds something foreign.
        """
        self._root, self._model, self._kernel, self._flush = root, model, kernel, flush
        self._directory = root / "galleries"
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = _take(root / "LOCK")
            self._directory.mkdir(exist_ok=True)
        except OSError as error:
            raise GalleryError(f"{root} can't hold galleries: {error}") from error
        try:
            self._check_foreign()
            self._aliases = self._read_aliases()
        except GalleryError:
            os.close(self._lock)
            raise
        self._open: dict[str, Gallery] = {}
        self._unusable: dict[str, GalleryError] = {}
        for path in sorted(self._directory.iterdir()):
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path)
                continue
            try:
                self._open[path.name] = self._load(path.name)
            except GalleryError as error:
                _log.warning("%s", error)
                self._unusable[path.name] = error
        self._executor = ThreadPoolExecutor(1, "gallery job")
        self._long: Future[Any] | None = None
        self._jobs_started = 0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_all, name="gallery writer")
        self._writer.start()

    def close(self) -> None:
        """Finish what is under way, flush and close."""
        self._executor.shutdown()
        self._jobs.put(None)
        self._writer.join()
        for gallery in self._open.values():
            gallery.close()
        os.close(self._lock)

    def get(self, name: str) -> Gallery:
        """A gallery by its name or alias.

        Raises:
            TeranInputError: there is none.
            GalleryError: it can't be used; the message says why.
        """
        name = self._aliases.get(name, name)
        if name in self._unusable:
            raise self._unusable[name]
        if name not in self._open:
            known = sorted({*self._open, *self._aliases})
            raise TeranInputError(
                f"there is no gallery {name[:64]!r}; "
                + (f"there are {', '.join(known)}" if known else "index something first")
            )
        return self._open[name]

    def get_or_create(self, name: str, kind: Kind) -> Gallery:
        """A gallery to write to.

        Raises:
            TeranInputError: the name can't be used, or names a gallery of another kind.
            GalleryError: it can't be used or made.
        """
        name = self._aliases.get(name, name)
        if name not in self._open and name not in self._unusable:
            _check_name(name)
            self.run(lambda: self._create(name, kind)).result()
        gallery = self.get(name)
        if gallery.kind is not kind:
            raise TeranInputError(f"gallery {name!r} holds {gallery.kind}, not {kind}")
        return gallery

    def _create(self, name: str, kind: Kind) -> None:
        if name not in self._open:
            try:
                create_gallery(self._directory / name, kind, self._model)
            except OSError as error:
                raise GalleryError(f"gallery {name!r} can't be made: {error}") from error
            self._open[name] = self._load(name)

    def write(
        self, gallery: Gallery, upserts: Sequence[Item] = (), deletes: Sequence[str] = ()
    ) -> "Future[int]":
        """Write with whatever else is waiting; the result is the number of items deleted.

        Raises:
            GalleryBusyError: a snapshot is being written or restored.
        """
        self._require_quiet()
        return self._submit(_Job(Future(), gallery, upserts, deletes))

    def run(self, action: Callable[[], Any]) -> "Future[Any]":
        """Run something between two writes."""
        return self._submit(_Job(Future(), action=action))

    def start(self, action: Callable[[], Any]) -> int:
        """Run something long beside searches; writes are refused meanwhile. Returns its number.

        Raises:
            GalleryBusyError: something is running already.
        """
        self._require_quiet()
        self.run(lambda: None).result()  # what was written before is done
        self._jobs_started += 1
        self._long = self._executor.submit(action)
        return self._jobs_started

    def result(self, number: int) -> Any | None:
        """What came of `start`; None while it runs.

        Raises:
            TeranInputError: there was no such thing, or something else was started since.
            TeranError: it failed.
        """
        if self._long is None or number != self._jobs_started:
            raise TeranInputError(f"there is no job {number}")
        return self._long.result() if self._long.done() else None

    def _require_quiet(self) -> None:
        if self._long is not None and not self._long.done():
            raise GalleryBusyError("a snapshot is being written or restored; try again soon")

    def _submit(self, job: _Job) -> "Future[Any]":
        self._jobs.put(job)
        return job.future

    def set_alias(self, alias: str, name: str) -> None:
        """Have `alias` mean the gallery `name` from now on.

        Raises:
            TeranInputError: a gallery has that name, or there is no gallery `name`.
        """
        _check_name(alias)
        if alias in self._open or alias in self._unusable:
            raise TeranInputError(f"{alias!r} is a gallery, so it can't be an alias")
        if name not in self._open:
            raise TeranInputError(f"there is no gallery {name[:64]!r} to point {alias!r} at")
        aliases = {**self._aliases, alias: name}
        temporary = self._root / "aliases.json.new"
        try:
            temporary.write_text(json.dumps(aliases, indent=1) + "\n", encoding="utf-8")
            temporary.replace(self._root / "aliases.json")
        except OSError as error:
            raise GalleryError(f"aliases.json can't be written: {error}") from error
        self._aliases = aliases

    def drop(self, name: str) -> None:
        """Remove a gallery and everything in it.

        Raises:
            TeranInputError: there is none of that name, or an alias still points at it.
        """
        pointing = sorted(alias for alias, target in self._aliases.items() if target == name)
        if pointing:
            raise TeranInputError(f"alias {pointing[0]!r} points at {name!r}; move it first")
        if name not in self._open:
            raise TeranInputError(f"there is no gallery {name[:64]!r} that could be dropped")
        gallery = self._open.pop(name)
        gallery.close()
        doomed = self._directory / f".{name}.dropped"
        gallery.directory.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def snapshot(self, name: str) -> Path:
        """Write all of a gallery to one file in `snapshots/`.

        Raises:
            GalleryError: it can't be written.
        """
        gallery = self.get(name)
        folder = self._root / "snapshots"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        path = folder / f"{gallery.name}-{stamp}.tar"
        temporary = path.with_suffix(".new")
        try:
            folder.mkdir(exist_ok=True)
            gallery.store.flush()
            with tarfile.open(temporary, "w") as archive:
                for part in ("gallery.json", "store"):
                    archive.add(gallery.directory / part, part)
            temporary.rename(path)
        except Exception as error:  # the store's binding raises plain Exception
            temporary.unlink(missing_ok=True)
            raise GalleryError(f"the snapshot {path} can't be written: {error}") from error
        return path

    def restore(self, file: str, name: str) -> Gallery:
        """Make the gallery `name` from a file in `snapshots/`.

        Raises:
            TeranInputError: the file or the name can't be used.
            GalleryError: the file is damaged, or made with another model; nothing is left behind.
        """
        _check_name(name)
        if name in self._open or name in self._unusable or name in self._aliases:
            raise TeranInputError(f"there is a gallery {name!r} already; restore under a new name")
        path = self._root / "snapshots" / Path(file).name
        if not path.is_file():
            raise TeranInputError(f"there is no snapshot {path.name[:200]!r}")
        temporary = self._directory / f".{name}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with tarfile.open(path) as archive:
                archive.extractall(temporary, filter="data")
            read_description(temporary).check(name, self._model)
            temporary.rename(self._directory / name)
        except (OSError, tarfile.TarError) as error:
            raise GalleryError(f"the snapshot {path} can't be restored: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._open[name] = self._load(name)
        return self._open[name]

    def info(self) -> dict[str, Any]:
        """What can be told of all galleries."""
        return {
            "galleries": [gallery.info() for gallery in self._open.values()],
            "unusable": {name: str(error) for name, error in self._unusable.items()},
            "aliases": self._aliases,
            "kernel": self._kernel.name,
        }

    def _load(self, name: str) -> Gallery:
        return Gallery(self._directory / name, name, self._model, self._kernel, flush=self._flush)

    def _check_foreign(self) -> None:
        for path in self._root.iterdir():
            if path.name not in _OWN:
                raise GalleryError(
                    f"{path} is no part of a gallery; choose another directory, or move it away"
                )
        for path in self._directory.iterdir():
            known = _NAME.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
            if not path.is_dir() or not known:
                raise GalleryError(f"{path} is no gallery; move it away")

    def _read_aliases(self) -> dict[str, str]:
        path = self._root / "aliases.json"
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(alias): str(name) for alias, name in content.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise GalleryError(f"{path} can't be read: {error}; nothing was changed") from error

    def _write_all(self) -> None:
        """The writing thread: everything that waits is committed together."""
        while True:
            try:
                job = self._jobs.get(timeout=_IDLE)
            except queue.Empty:
                self._maintain()
                continue
            jobs, size = [job], job.size if job else 0
            while size < _LARGEST_COMMIT and not self._jobs.empty():
                jobs.append(self._jobs.get())
                size += jobs[-1].size if jobs[-1] else 0
            for group in _groups([job for job in jobs if job]):
                _commit(group)
            if None in jobs:
                return
            if self._jobs.empty():
                continue
            self._maintain()

    def _maintain(self) -> None:
        if self._long is not None and not self._long.done():
            return
        for gallery in list(self._open.values()):
            try:
                gallery.maintain()
            except Exception:  # the writer must live
                _log.exception("gallery %s", gallery.name)


def _groups(jobs: Sequence[_Job]) -> list[list[_Job]]:
    """Jobs that can be one commit: upserts of a gallery, up to and with the first deletion."""
    groups: list[list[_Job]] = []
    for job in jobs:
        last = groups[-1] if groups else None
        if last and job.gallery and last[0].gallery is job.gallery and not last[-1].deletes:
            last.append(job)
        else:
            groups.append([job])
    return groups


def _commit(group: Sequence[_Job]) -> None:
    """Do one group's work and tell those who wait for it."""
    first = group[0]
    try:
        if first.action:
            result: Any = first.action()
        else:
            assert first.gallery is not None
            # Of several writes to an id the last one counts.
            latest = {item.id: item for job in group for item in job.upserts}
            result = first.gallery.write(list(latest.values()), group[-1].deletes)
    except Exception as error:
        if not isinstance(error, TeranError):
            _log.exception("a write failed")
        for job in group:
            job.future.set_exception(error)
        return
    for job in group:
        job.future.set_result(result if job is group[-1] else 0)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise TeranInputError(
            f"gallery name {name[:64]!r}: use up to 64 lower-case letters, digits, _ and -"
        )


def _take(path: Path) -> int:
    """Lock a directory for this process.

    Raises:
        GalleryError: another process holds it; the message says which.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise GalleryError(
            f"{path.parent} is in use by {holder or 'another process'}; give this server another "
            "directory with --gallery"
        ) from error
    os.ftruncate(descriptor, 0)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.pwrite(descriptor, f"process {os.getpid()} since {since}\n".encode(), 0)
    return descriptor
