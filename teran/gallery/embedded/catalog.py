"""The galleries of a directory: their names, aliases and snapshots.

galleries/<name>/gallery.json, store/, compact/
aliases.json
snapshots/<name>-<time>.tar
LOCK                                   held, and named its holder, while a process runs

What is damaged or foreign is set aside and named, and changes nothing for the rest.
"""

import ctypes
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import NAME, GalleryCatalog, Model, check_name, unknown
from teran.gallery.courtesy import Courtesy
from teran.gallery.embedded.files import (
    make_directory,
    rename_durably,
    require_free,
    room_of,
    write_durably,
)
from teran.gallery.embedded.gallery import EmbeddedGallery, create_gallery, read_description
from teran.gallery.embedded.lock import LOCK, lock_directory
from teran.gallery.embedded.snapshot import extract_snapshot, write_snapshot
from teran.gallery.embedded.vacuum import vacuum
from teran.gallery.search.kernels import Kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.writer import Writer

if TYPE_CHECKING:  # it needs torch
    from teran.gallery.search.device import DeviceCopy

_UNFINISHED = re.compile(r"\.[a-z0-9][a-z0-9_-]{0,63}\.(new|dropped)")
"""A gallery that was never finished being made, or removed."""
_ALIASES, _DAMAGED_ALIASES = "aliases.json", "aliases.json.damaged"
_OWN = {
    "galleries",
    _ALIASES,
    "aliases.json.new",
    _DAMAGED_ALIASES,
    "snapshots",
    LOCK,
    "lost+found",
}
_log = logging.getLogger(__name__)


class EmbeddedCatalog(GalleryCatalog):
    """Opens a directory for this process alone. Close it to bring everything to the disk."""

    def __init__(
        self,
        root: Path,
        model: Model,
        kernel: Kernel,
        *,
        device: "Callable[[], DeviceCopy] | None" = None,
        most: int = 100,
        most_snapshots: int = 100,
    ) -> None:
        """Open all galleries of the model.

        Args:
            root: the directory.
            model: what every gallery must have been made with.
            kernel: what scores items.
            device: makes the copy on a GPU that is scanned instead.
            most: galleries, beyond which none is made.
            most_snapshots: beyond which none is written.

        Raises:
            GalleryError: another process holds the directory, or it holds something foreign.
        """
        self._root, self._model, self._kernel = root, model, kernel
        self._most, self._most_snapshots = most, most_snapshots
        self.courtesy = Courtesy()
        self._options: dict[str, Any] = {"device": device, "courtesy": self.courtesy}
        self._directory = root / "galleries"
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            make_directory(root)
            self._lock = lock_directory(root)
            make_directory(self._directory)
        except OSError as error:
            raise GalleryError(f"{root} can't hold galleries: {error}") from error
        self._unusable: dict[str, GalleryError] = {}
        try:
            self._check_foreign()
        except GalleryError:
            self._lock.close()
            raise
        self._aliases = self._read_aliases()
        self._open: dict[str, EmbeddedGallery] = {}
        for path in sorted(self._directory.iterdir()):
            if _UNFINISHED.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
                continue
            try:
                if not path.is_dir() or not NAME.fullmatch(path.name):
                    raise GalleryError(f"{path} is no gallery; move it away")
                self._open[path.name] = self._load(path.name)
                self._give_room_back(path.name)
            except Exception as error:  # whatever its files hold, it must not hold up the others
                self._set_aside(path.name, _as_ours(path, error))
        self.writer = Writer(self._maintain)

    def close(self) -> None:
        with ExitStack() as closing:  # all of them, whatever fails
            closing.callback(self._lock.close)
            for gallery in self._open.values():
                closing.callback(gallery.close)
            self.writer.close()

    def get(self, name: str) -> EmbeddedGallery:
        name = self._aliases.get(name, name)
        if name in self._open:
            return self._open[name]
        # While nobody can tell what is an alias, an unknown name may be one.
        for unusable in (name, _ALIASES):
            if unusable in self._unusable:
                raise self._unusable[unusable]
        raise unknown(name, {*self._open, *self._aliases})

    def exists(self, name: str) -> bool:
        name = self._aliases.get(name, name)
        return name in self._open or not {name, _ALIASES}.isdisjoint(self._unusable)

    def create(self, name: str, kind: Kind) -> None:
        directory = self._unused(name)
        try:
            create_gallery(directory, kind, self._model)
            self._open[name] = self._load(name)
        except (GalleryError, OSError) as error:
            shutil.rmtree(directory, ignore_errors=True)  # it is empty, and its name is wanted
            raise GalleryError(f"gallery {name!r} can't be made: {error}") from error

    def set_alias(self, alias: str, name: str) -> None:
        check_name(alias)
        if alias in self._open or alias in self._unusable:
            raise TeranInputError(f"{alias!r} is a gallery, so it can't be an alias")
        if name not in self._open:
            raise TeranInputError(f"there is no gallery {name[:64]!r} to point {alias!r} at")
        self._write_aliases({**self._aliases, alias: name})

    def remove_alias(self, alias: str) -> None:
        if alias not in self._aliases:
            raise TeranInputError(f"there is no alias {alias[:64]!r}")
        self._write_aliases({a: name for a, name in self._aliases.items() if a != alias})

    def _write_aliases(self, aliases: dict[str, str]) -> None:
        path = self._root / _ALIASES
        try:
            if _ALIASES in self._unusable and path.exists():
                shutil.copyfile(path, path.with_name(_DAMAGED_ALIASES))
            write_durably(path, json.dumps(aliases, indent=1) + "\n")
        except OSError as error:
            raise GalleryError(f"{path} can't be written: {error}") from error
        self._aliases = aliases
        self._unusable.pop(_ALIASES, None)

    def drop(self, name: str) -> None:
        pointing = sorted(alias for alias, target in self._aliases.items() if target == name)
        if pointing:
            raise TeranInputError(f"alias {pointing[0]!r} points at {name!r}; move it first")
        directory = self._directory / name
        if _ALIASES in self._unusable:  # one may point at it
            raise self._unusable[_ALIASES]
        gallery = self._open.pop(name, None)
        if gallery is None and (not NAME.fullmatch(name) or name not in self._unusable):
            raise TeranInputError(f"there is no gallery {name[:64]!r} that could be dropped")
        doomed = self._directory / f".{name}.dropped"
        try:
            if gallery is not None:
                gallery.close()
            shutil.rmtree(doomed, ignore_errors=True)
            rename_durably(directory, doomed)
        except (GalleryError, OSError) as error:
            self._set_aside(name, GalleryError(f"{directory} can't be removed: {error}"))
            raise self._unusable[name] from error
        self._unusable.pop(name, None)
        shutil.rmtree(doomed, ignore_errors=True)
        del gallery
        _return_memory()

    def snapshot(self, name: str) -> str:
        """Write it to `snapshots/`."""
        gallery = self.get(name)
        folder = self._root / "snapshots"
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        path = folder / f"{gallery.name}-{stamp}.tar"
        temporary = path.with_suffix(".new")
        try:
            make_directory(folder)
            self._require_room(folder)
            gallery.store.flush()
            require_free(folder, room_of(gallery.directory / "store"))
            write_snapshot(gallery.directory, gallery.store.count(), temporary)
            rename_durably(temporary, path)
        except (GalleryError, OSError, tarfile.TarError) as error:
            temporary.unlink(missing_ok=True)
            raise GalleryError(f"the snapshot {path} can't be written: {error}") from error
        return str(path)

    def restore(self, file: str, name: str) -> EmbeddedGallery:
        """Read it from `snapshots/`."""
        check_name(name)
        if name in self._open or name in self._unusable or name in self._aliases:
            raise TeranInputError(f"there is a gallery {name!r} already; restore under a new name")
        path = self._root / "snapshots" / Path(file).name
        if not path.is_file():
            raise TeranInputError(f"there is no snapshot {path.name[:200]!r}")
        directory, temporary = self._unused(name), self._directory / f".{name}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        made = False
        try:
            require_free(self._directory, 512 * path.stat().st_blocks)
            items = extract_snapshot(path, temporary)
            read_description(temporary).check(name, self._model)
            rename_durably(temporary, directory)
            made = True
            restored = self._load(name)
            if len(restored) != items:
                restored.close()
                raise GalleryError(f"it holds {len(restored)} items instead of {items}")
        except Exception as error:  # whatever it holds, it must not keep the name
            shutil.rmtree(directory if made else temporary, ignore_errors=True)
            raise GalleryError(f"the snapshot {path} can't be restored: {error}") from error
        self._open[name] = restored
        return restored

    def info(self) -> dict[str, Any]:
        return {
            "galleries": [gallery.info() for gallery in list(self._open.values())],
            "unusable": {name: str(error) for name, error in list(self._unusable.items())},
            "aliases": self._aliases,
            "kernel": self._kernel.name,
        }

    def _unused(self, name: str) -> Path:
        """The directory for a new gallery.

        Raises:
            TeranInputError: there are too many already.
            GalleryError: there is something, which was put there since the start.
        """
        there = len(self._open) + len(self._unusable)
        if there >= self._most:
            raise TeranInputError(
                f"there are {there} galleries already; drop one, or allow more with --gallery-count"
            )
        directory = self._directory / name
        if directory.exists():
            raise GalleryError(f"{directory} is there already; it is opened at the next start")
        return directory

    def _give_room_back(self, name: str) -> None:
        gallery = self._open[name]
        if gallery.is_mostly_deleted():
            del self._open[name]
            gallery.close()
            vacuum(self._directory / name / "store", len(gallery), self._model.embed_dim)
            self._open[name] = self._load(name)

    def _load(self, name: str) -> EmbeddedGallery:
        if not any((self._directory / name).glob("store*/*")):
            raise GalleryError(
                f"{self._directory / name} has no store any more; restore a snapshot"
            )
        return EmbeddedGallery(
            self._directory / name, name, self._model, self._kernel, **self._options
        )

    def _set_aside(self, name: str, error: GalleryError) -> None:
        _log.warning("%s", error)
        self._unusable[name] = error

    def _require_room(self, folder: Path) -> None:
        """Refuse a snapshot beyond the quota.

        Raises:
            GalleryError: there are too many already.
        """
        there = len(list(folder.glob("*.tar")))
        if there >= self._most_snapshots:
            raise GalleryError(
                f"there are {there} snapshots in {folder}; remove old ones, or allow more with "
                "--gallery-snapshots"
            )

    def _check_foreign(self) -> None:
        """Name what is no part of galleries; a directory without any is somebody else's.

        Raises:
            GalleryError: it is.
        """
        is_new = not any(self._directory.iterdir())
        for path in self._root.iterdir():
            if path.name not in _OWN:
                error = GalleryError(
                    f"{path} is no part of a gallery; choose another directory, or move it away"
                )
                if is_new:
                    raise error
                self._set_aside(str(path), error)

    def _read_aliases(self) -> dict[str, str]:
        path = self._root / _ALIASES
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return {str(alias): str(name) for alias, name in content.items()}
        except (OSError, ValueError, AttributeError) as error:
            problem = GalleryError(
                f"{path} can't be read: {error}; galleries go by their own names until an alias is "
                "set again"
            )
            self._set_aside(_ALIASES, problem)
            return {}

    def _maintain(self) -> None:
        for gallery in list(self._open.values()):
            gallery.maintain()


def _return_memory() -> None:
    """Give the system what is free: the C library keeps what lies among memory in use."""
    with suppress(AttributeError):  # it is not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _as_ours(path: Path, error: Exception) -> GalleryError:
    if isinstance(error, GalleryError):
        return error
    failure = GalleryError(f"{path} is damaged: {error!r}; nothing was changed")
    failure.__cause__ = error
    return failure
