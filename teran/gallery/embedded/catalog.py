"""The galleries of a directory: their names, aliases and snapshots.

galleries/<name>/gallery.json, store/, compact/
aliases.json
snapshots/<name>-<time>.tar
LOCK                                   held, and named its holder, while a process runs
"""

import json
import logging
import re
import shutil
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from teran.errors import GalleryError, TeranInputError
from teran.gallery.catalog import NAME, GalleryCatalog, Model, check_name, unknown
from teran.gallery.embedded.gallery import EmbeddedGallery, create_gallery, read_description
from teran.gallery.embedded.lock import LOCK, lock_directory
from teran.gallery.search.kernels import Kernel
from teran.gallery.search.pooling import Kind
from teran.gallery.writer import Writer

if TYPE_CHECKING:  # it needs torch
    from teran.gallery.search.device import DeviceCopy

_UNFINISHED = re.compile(r"\.[a-z0-9][a-z0-9_-]{0,63}\.(new|dropped)")
"""A gallery that was never finished being made, or removed."""
_OWN = {"galleries", "aliases.json", "aliases.json.new", "snapshots", LOCK, "lost+found"}
_log = logging.getLogger(__name__)


class EmbeddedCatalog(GalleryCatalog):
    """Opens a directory for this process alone. Close it to bring everything to the disk."""

    def __init__(
        self,
        root: Path,
        model: Model,
        kernel: Kernel,
        *,
        flush: bool = False,
        device: "Callable[[], DeviceCopy] | None" = None,
    ) -> None:
        """Open all galleries of the model.

        Args:
            root: the directory.
            model: what every gallery must have been made with.
            kernel: what scores items.
            flush: whether a write is on the disk before it is acknowledged.
            device: makes the copy on a GPU that is scanned instead.

        Raises:
            GalleryError: another process holds the directory, or it holds something foreign.
        """
        self._root, self._model, self._kernel = root, model, kernel
        self._options: dict[str, Any] = {"flush": flush, "device": device}
        self._directory = root / "galleries"
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._lock = lock_directory(root)
            self._directory.mkdir(exist_ok=True)
        except OSError as error:
            raise GalleryError(f"{root} can't hold galleries: {error}") from error
        try:
            self._check_foreign()
            self._aliases = self._read_aliases()
        except GalleryError:
            self._lock.close()
            raise
        self._open: dict[str, EmbeddedGallery] = {}
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
        self.writer = Writer(self._maintain)

    def close(self) -> None:
        self.writer.close()
        for gallery in self._open.values():
            gallery.close()
        self._lock.close()

    def get(self, name: str) -> EmbeddedGallery:
        name = self._aliases.get(name, name)
        if name in self._unusable:
            raise self._unusable[name]
        if name not in self._open:
            raise unknown(name, {*self._open, *self._aliases})
        return self._open[name]

    def exists(self, name: str) -> bool:
        name = self._aliases.get(name, name)
        return name in self._open or name in self._unusable

    def create(self, name: str, kind: Kind) -> None:
        try:
            create_gallery(self._directory / name, kind, self._model)
        except OSError as error:
            raise GalleryError(f"gallery {name!r} can't be made: {error}") from error
        self._open[name] = self._load(name)

    def set_alias(self, alias: str, name: str) -> None:
        check_name(alias)
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

    def snapshot(self, name: str) -> str:
        """Write it to `snapshots/`."""
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
        return str(path)

    def restore(self, file: str, name: str) -> EmbeddedGallery:
        """Read it from `snapshots/`."""
        check_name(name)
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
        return {
            "galleries": [gallery.info() for gallery in self._open.values()],
            "unusable": {name: str(error) for name, error in self._unusable.items()},
            "aliases": self._aliases,
            "kernel": self._kernel.name,
        }

    def _load(self, name: str) -> EmbeddedGallery:
        return EmbeddedGallery(
            self._directory / name, name, self._model, self._kernel, **self._options
        )

    def _check_foreign(self) -> None:
        for path in self._root.iterdir():
            if path.name not in _OWN:
                raise GalleryError(
                    f"{path} is no part of a gallery; choose another directory, or move it away"
                )
        for path in self._directory.iterdir():
            known = NAME.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name)
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

    def _maintain(self) -> None:
        for gallery in list(self._open.values()):
            gallery.maintain()
