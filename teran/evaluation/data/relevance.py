"""How relevant every image is to every caption: from the authors' files, or computed."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from teran.errors import TeranInputError
from teran.evaluation.data.captions import Split
from teran.evaluation.rouge import relevance

Grades = npt.NDArray[np.float32]
RELEVANCES = "relevances"
"""The folder of the authors' files."""
ROUGE_L, SPICE = "rouge_l", "spice"
_FILES = {ROUGE_L: "rougeL", SPICE: "spice"}


def grade(root: Path, whole: Split, folds: list[Split]) -> list[dict[str, Grades]]:
    """Grade every fold of a split: by ROUGE-L, and by SPICE where there is a file of it.

    The authors' files are `<data set>-<split>-<rougeL or spice>.npy`, in the folder `relevances`:
    numbers without a header. Without that of ROUGE-L it is computed.

    Args:
        root: of the data set.
        whole: the split that the files are of.
        folds: parts of it, one after the other.

    Returns:
        For every fold, by measure, (M, N).

    Raises:
        TeranInputError: a file has the wrong size.
    """
    stored = {name: found for name in _FILES if (found := _read(root, whole, name)) is not None}
    graded, image, caption = [], 0, 0
    for fold in folds:
        images = slice(image, image := image + len(fold.image_ids))
        captions = slice(caption, caption := caption + len(fold.captions))
        grades = {name: np.asarray(values[captions, images]) for name, values in stored.items()}
        if ROUGE_L not in grades:
            grades[ROUGE_L] = np.concatenate(
                list(relevance(fold.captions, fold.owner, len(fold.image_ids)))
            )
        graded.append(grades)
    return graded


def _read(root: Path, split: Split, measure: str) -> npt.NDArray[Any] | None:
    name = f"{split.dataset}-{split.name}-{_FILES[measure]}.npy"
    path = next((one for one in (root / RELEVANCES / name, root / name) if one.is_file()), None)
    if path is None:
        return None
    shape = len(split.captions), len(split.image_ids)
    if path.stat().st_size != 4 * shape[0] * shape[1]:
        raise TeranInputError(
            f"{path} has {path.stat().st_size:,} bytes; {shape[0]:,} captions and {shape[1]:,} "
            f"images take {4 * shape[0] * shape[1]:,}"
        )
    return np.memmap(path, np.float32, "r", shape=shape)
