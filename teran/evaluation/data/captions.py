"""Captions and splits: Karpathy's files, COCO's with the authors' lists of ids, and our own.

In every one an image has five captions, in the order of the file; what Karpathy's COCO has beyond
that is left out, as in the authors' lists.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError

DATASETS = ("coco", "f30k")
PER_IMAGE = 5
CAPTIONS_FILE = "captions.json"
"""Ours, in a packed data set."""
_KARPATHY = {"coco": "dataset_coco.json", "f30k": "dataset_flickr30k.json"}
_IDS = {"train": "train", "val": "dev", "test": "test", "restval": "restval"}
"""What the authors call the lists of annotation ids."""
_MOST_DEV_CAPTIONS = 5000
"""The authors use no more of the validation split."""


@dataclass(frozen=True)
class Split:
    """Images in the order of the protocol, with their captions one after the other."""

    dataset: str
    name: str
    image_ids: list[str]
    captions: list[str]
    owner: npt.NDArray[np.int64]
    """(M,), the image each caption belongs to, ascending."""

    def __post_init__(self) -> None:
        if not self.image_ids:
            raise TeranInputError(f"{self.dataset} has no images in its split {self.name!r}")
        counts = np.bincount(self.owner, minlength=len(self.image_ids))
        wrong = np.flatnonzero(counts != PER_IMAGE)
        if len(wrong):
            first = wrong[0]
            raise TeranInputError(
                f"{len(wrong)} images of the split {self.name!r} have not {PER_IMAGE} captions; "
                f"image {self.image_ids[first]} has {counts[first]}"
            )

    def part(self, first: int, images: int) -> "Split":
        """Some of the images, one after the other."""
        rows = slice(first, first + images)
        captions = slice(first * PER_IMAGE, (first + images) * PER_IMAGE)
        return Split(
            self.dataset,
            self.name,
            self.image_ids[rows],
            self.captions[captions],
            self.owner[captions] - first,
        )

    @classmethod
    def of(cls, dataset: str, name: str, described: Iterable[tuple[str, list[str]]]) -> "Split":
        """Make one of images and their captions."""
        pairs = list(described)
        owner = np.repeat(np.arange(len(pairs)), [len(captions) for _, captions in pairs])
        captions = [caption for _, several in pairs for caption in several]
        return cls(dataset, name, [image for image, _ in pairs], captions, owner)


def root_of(directory: Path, dataset: str) -> Path:
    """Where a data set lies: in a directory, or in one of its name there."""
    return directory / dataset if (directory / dataset).is_dir() else directory


def read_split(root: Path, dataset: str, name: str) -> Split:
    """Read a split from whichever file of captions a directory holds.

    Args:
        root: of the data set; files may lie in it, or in its folder `annotations`.
        dataset: `coco` or `f30k`.
        name: `train`, `val`, `test` or, of COCO, `restval`.

    Raises:
        TeranInputError: there is no such file or split, or it is damaged.
    """
    if dataset not in DATASETS:
        raise TeranInputError(f"{dataset!r} is none of the data sets {', '.join(DATASETS)}")
    ours, karpathy = _find(root, CAPTIONS_FILE), _find(root, _KARPATHY[dataset])
    if ours:
        found = read_json(ours)
        if found.get("dataset") != dataset or name not in found.get("splits", {}):
            there = ", ".join(found.get("splits", {})) or "none"
            raise TeranInputError(
                f"{ours} is of {found.get('dataset')} with the splits {there}, "
                f"not of {dataset} with {name!r}"
            )
        return Split.of(dataset, name, found["splits"][name])
    if dataset == "coco" and name in _IDS and (ids := _find(root, f"coco_{_IDS[name]}_ids.npy")):
        return _coco(root, ids, name)
    if karpathy:
        return _karpathy(karpathy, dataset, name)
    raise TeranInputError(
        f"{root} holds no captions of {dataset}: neither {_KARPATHY[dataset]}"
        + (f" nor coco_{_IDS.get(name, name)}_ids.npy" if dataset == "coco" else "")
    )


def dataset_of(root: Path) -> str:
    """Which data set the captions in a directory are of.

    Raises:
        TeranInputError: there are none of a known one.
    """
    if ours := _find(root, CAPTIONS_FILE):
        return str(read_json(ours).get("dataset"))
    for dataset, name in _KARPATHY.items():
        if _find(root_of(root, dataset), name):
            return dataset
    coco = root_of(root, "coco")
    if any(_find(coco, f"coco_{name}_ids.npy") for name in _IDS.values()):
        return "coco"
    raise TeranInputError(f"{root} holds no captions of {' or '.join(DATASETS)}")


def write_splits(path: Path, dataset: str, splits: Iterable[Split]) -> None:
    """Write our own file of captions."""
    pairs = {
        split.name: [
            (image, split.captions[i * PER_IMAGE : (i + 1) * PER_IMAGE])
            for i, image in enumerate(split.image_ids)
        ]
        for split in splits
    }
    path.write_text(json.dumps({"dataset": dataset, "splits": pairs}) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds an object.

    Raises:
        TeranInputError: it can't be read as one.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TeranInputError(f"can't read {path}: {error}") from error
    if not isinstance(found, dict):
        raise TeranInputError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _find(root: Path, name: str) -> Path | None:
    places = (root / name, root / "annotations" / name)
    return next((place for place in places if place.is_file()), None)


def _karpathy(path: Path, dataset: str, name: str) -> Split:
    """COCO's images by their own ids, Flickr30k's by their places in the file."""
    try:
        return Split.of(
            dataset,
            name,
            (
                (
                    str(image["cocoid"] if dataset == "coco" else place),
                    [sentence["raw"] for sentence in image["sentences"][:PER_IMAGE]],
                )
                for place, image in enumerate(read_json(path)["images"])
                if image["split"] == name
            ),
        )
    except (KeyError, TypeError) as error:
        raise TeranInputError(f"{path} is not a data set in Karpathy's form: {error!r}") from error


def _coco(root: Path, ids_file: Path, name: str) -> Split:
    file_name = f"captions_{'train' if name == 'train' else 'val'}2014.json"
    captions_file = _find(root, file_name)
    if not captions_file:
        raise TeranInputError(f"{root} has no {file_name}, which {ids_file.name} refers to")
    try:
        by_id = {
            one["id"]: (str(one["image_id"]), str(one["caption"]))
            for one in read_json(captions_file)["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise TeranInputError(f"{captions_file} is not COCO's: {error!r}") from error
    try:
        ids = np.load(ids_file, allow_pickle=False).tolist()
    except (OSError, ValueError, EOFError) as error:
        raise TeranInputError(f"can't read {ids_file}: {error}") from error
    ids = ids[:_MOST_DEV_CAPTIONS] if name == "val" else ids
    missing = [one for one in ids if one not in by_id]
    if missing:
        raise TeranInputError(
            f"{len(missing)} of {len(ids)} ids in {ids_file} are not in {captions_file}, "
            f"the first is {missing[0]}"
        )
    described: list[tuple[str, list[str]]] = []
    for one in ids:
        image, caption = by_id[one]
        if not described or described[-1][0] != image or len(described[-1][1]) == PER_IMAGE:
            described.append((image, []))
        described[-1][1].append(caption)
    return Split.of("coco", name, described)
