"""What a detector should have said: of every anchor, and of every proposal it is trained on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from teran.detector.boxes import Floats, overlaps
from teran.detector.config import STRIDE, DetectorConfig
from teran.errors import TeranInputError

_ANCHOR_IS_OBJECT, _ANCHOR_IS_NOT = 0.7, 0.3
_PROPOSAL_IS_OBJECT = 0.5
BACKGROUND = 0


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """A photo with what is in it."""

    pixels: npt.NDArray[np.uint8]
    """(H, W, 3), red first."""
    boxes: Floats
    """(N, 4), x1 y1 x2 y2 in pixels."""
    classes: npt.NDArray[np.int64]
    """(N,), from 0."""
    attributes: npt.NDArray[np.bool_]
    """(N, attributes), those that each object has."""


def check_photo(
    photo: LabelledPhoto, name: str, shape: tuple[int, ...], config: DetectorConfig
) -> None:
    """Check that a detector can be trained on a photo.

    Args:
        photo: the photo.
        name: what to call it.
        shape: of the pixels of all photos.
        config: of the detector.

    Raises:
        TeranInputError: it can't; the message names what is wrong.
    """
    count = len(photo.boxes)
    if photo.pixels.shape != shape:
        raise TeranInputError(f"{name} has pixels {photo.pixels.shape}, the first {shape}")
    if not count or photo.boxes.shape != (count, 4):
        raise TeranInputError(f"{name} has boxes {photo.boxes.shape}, expected (objects, 4)")
    if photo.classes.shape != (count,) or photo.attributes.shape != (count, config.attributes):
        raise TeranInputError(
            f"{name} has {count} boxes, classes {photo.classes.shape} and attributes "
            f"{photo.attributes.shape}, expected {(count,)} and {(count, config.attributes)}"
        )
    if not 0 <= photo.classes.min() <= photo.classes.max() < config.classes:
        raise TeranInputError(f"{name} has classes beyond 0 to {config.classes - 1}")


@dataclass(frozen=True, eq=False)
class AnchorTargets:
    """Of the anchors that one photo trains."""

    chosen: npt.NDArray[np.intp]
    """(S,), their places among all."""
    is_object: npt.NDArray[np.bool_]
    """(S,)"""
    deltas: Floats
    """(S, 4), of those that are objects; zeros for the rest."""


@dataclass(frozen=True, eq=False)
class ProposalTargets:
    """Of the proposals that one photo trains."""

    boxes: Floats
    """(S, 4)"""
    classes: npt.NDArray[np.int64]
    """(S,), the background is 0."""
    objects: npt.NDArray[np.intp]
    """(S,), which object each is; -1 for the background."""


def place_anchors(bases: Floats, height: int, width: int) -> Floats:
    """Anchors (h x w x 12, 4) at every cell of a map, the bases (12, 4) varying fastest."""
    y, x = STRIDE * np.mgrid[:height, :width].astype(np.float32)
    shifts = np.stack([x, y, x, y], axis=-1)
    placed: Floats = (shifts[:, :, None] + bases).reshape(-1, 4)
    return placed


def steps_to(boxes: Floats, bases: Floats) -> Floats:
    """What moves bases (N, 4) to boxes: the inverse of what proposals are made by."""
    sides = bases[:, 2:] - bases[:, :2] + 1
    centres = bases[:, :2] + 0.5 * sides
    wanted = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    steps = np.concatenate([(middle - centres) / sides, np.log(wanted / sides)], axis=1)
    result: Floats = steps.astype(np.float32)
    return result


def anchor_targets(
    anchors: Floats, boxes: Floats, size: tuple[int, int], count: int, random: np.random.Generator
) -> AnchorTargets:
    """Choose anchors to train on, at most half of them objects.

    An anchor inside the photo is an object where it overlaps one by 0.7, or none does better; it is
    none where it overlaps all by less than 0.3; the rest is left out.

    Args:
        anchors: (A, 4)
        boxes: (N, 4), in the same pixels.
        size: height and width of the photo.
        count: how many to choose.
        random: what chooses.
    """
    height, width = size
    inside = (anchors[:, :2] >= 0).all(axis=1)
    inside &= (anchors[:, 2] < width) & (anchors[:, 3] < height)
    over = overlaps(anchors, boxes)
    over[~inside] = 0
    best = over.max(axis=1)
    is_object = inside & (best >= _ANCHOR_IS_OBJECT)
    for_object = over.max(axis=0)
    is_object |= ((over == for_object) & (for_object > 0)).any(axis=1)
    objects = _some(is_object.nonzero()[0], count // 2, random)
    others = _some(
        (inside & ~is_object & (best < _ANCHOR_IS_NOT)).nonzero()[0], count - len(objects), random
    )
    deltas = np.zeros((len(objects) + len(others), 4), np.float32)
    deltas[: len(objects)] = steps_to(boxes[over[objects].argmax(axis=1)], anchors[objects])
    return AnchorTargets(
        np.concatenate([objects, others]), np.arange(len(deltas)) < len(objects), deltas
    )


def proposal_targets(
    proposals: Floats,
    boxes: Floats,
    classes: npt.NDArray[np.int64],
    count: int,
    random: np.random.Generator,
) -> ProposalTargets:
    """Choose proposals to train on, the objects' own boxes among them.

    They are always so many: half are objects at most, as long as there is any background, and
    what is too few is taken again.
    """
    every = np.concatenate([proposals, boxes])
    over = overlaps(every, boxes)
    is_object = over.max(axis=1) >= _PROPOSAL_IS_OBJECT
    objects = _some(is_object.nonzero()[0], count // 2, random)
    rest = (~is_object).nonzero()[0]
    if len(rest) < count - len(objects):
        rest = np.resize(random.permutation(rest if len(rest) else objects), count - len(objects))
    others = _some(rest, count - len(objects), random)
    chosen = np.concatenate([objects, others])
    which = np.where(is_object[chosen], over[chosen].argmax(axis=1), -1)
    labels = np.where(which >= 0, classes[which] + 1, BACKGROUND)
    return ProposalTargets(every[chosen], labels, which)


def _some(
    candidates: npt.NDArray[np.intp], most: int, random: np.random.Generator
) -> npt.NDArray[np.intp]:
    """At most so many of them, by chance."""
    if len(candidates) <= most:
        return candidates
    chosen: npt.NDArray[np.intp] = random.choice(candidates, most, replace=False)
    return chosen
