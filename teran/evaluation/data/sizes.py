"""How wide and high images are: boxes in pixels are nothing without it."""

import io
import pickle
from pathlib import Path
from typing import Any

from teran.errors import TeranInputError
from teran.evaluation.data.captions import read_json

Size = tuple[int, int]
_PLACES = ("", "annotations", "images", "flickr30k-images")


def read_sizes(root: Path) -> dict[str, Size]:
    """Collect the width and height of images by id, from every file there is.

    `sizes.json` (id to [width, height]), COCO's files of captions, and the authors' `sizes.pkl` (a
    list, Flickr30k's images by their places), which is read without running code in it.

    Args:
        root: of the data set.

    Raises:
        TeranInputError: one of the files is damaged.
    """
    sizes: dict[str, Size] = {}
    for folder in (root / place for place in _PLACES):
        for path in sorted(folder.glob("captions_*.json")):
            try:
                for image in read_json(path).get("images", ()):
                    sizes[str(image["id"])] = _size((image["width"], image["height"]), path)
            except (KeyError, TypeError) as error:
                raise TeranInputError(f"{path} is not COCO's: {error!r}") from error
        if (path := folder / "sizes.pkl").is_file():
            sizes |= {str(i): size for i, size in enumerate(_unpickled(path))}
        if (path := folder / "sizes.json").is_file():
            sizes |= {name: _size(size, path) for name, size in read_json(path).items()}
    return sizes


class _Unpickler(pickle.Unpickler):
    """Reads numbers, lists and tuples, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickled(path: Path) -> list[Size]:
    try:
        found = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # what a damaged pickle raises can be anything
        raise TeranInputError(f"can't read {path}: {error}") from error
    if not isinstance(found, list):
        raise TeranInputError(f"{path} holds a {type(found).__name__}, not a list of sizes")
    return [_size(size, path) for size in found]


def _size(found: object, path: Path) -> Size:
    if not isinstance(found, list | tuple) or len(found) != 2:
        raise TeranInputError(f"{path}: {found!r} is no width and height")
    width, height = found
    if not (isinstance(width, int) and isinstance(height, int) and min(width, height) > 0):
        raise TeranInputError(f"{path}: {found!r} is no width and height")
    return width, height
