"""From the proposal network's maps to boxes that may hold an object."""

import math

import numpy as np

from teran.detector.boxes import Floats, best_apart
from teran.detector.config import ANCHORS, STRIDE, DetectorConfig
from teran.detector.photo import input_size, map_side, scale_of
from teran.errors import TeranInputError

_NMS = 0.7
_LARGEST_STEP = math.log(1000 / 16)
"""Of the logarithm of a side: more is a network gone wrong."""
_BASE, _RATIOS, _SCALES = 16, (0.5, 1.0, 2.0), (4, 8, 16, 32)


def anchors() -> Floats:
    """Caffe's twelve (12, 4): three shapes, whose sides are rounded, of four sizes."""
    centre = (_BASE - 1) / 2
    shapes = []
    for ratio in _RATIOS:
        width = round(math.sqrt(_BASE * _BASE / ratio))
        shapes.append((width, round(width * ratio)))
    sides = np.array([(w * s, h * s) for w, h in shapes for s in _SCALES], np.float32)
    return np.concatenate([centre - (sides - 1) / 2, centre + (sides - 1) / 2], axis=1)


def propose(
    objectness: Floats,
    deltas: Floats,
    bases: Floats,
    photo: tuple[int, int],
    config: DetectorConfig,
) -> Floats:
    """The most promising boxes of a photo, apart from each other.

    Args:
        objectness: (12, h, w), probabilities; what lies beyond the photo is not looked at.
        deltas: (48, h, w)
        bases: the anchors (12, 4).
        photo: its height and width, as it came.
        config: the detector's.

    Returns:
        (n, 4) in the pixels of the network's input, the most promising first.

    Raises:
        TeranInputError: the maps are too small for the photo, or not finite.
    """
    size = input_size(photo, config)
    height, width = map(map_side, size)
    for name, values in (("objectness", objectness), ("deltas", deltas)):
        if values.shape[1] < height or values.shape[2] < width:
            raise TeranInputError(
                f"{name} has {values.shape[1]} x {values.shape[2]} cells; a photo of "
                f"{photo[1]} x {photo[0]} pixels has {height} x {width}"
            )
        if not np.isfinite(values).all():
            raise TeranInputError(f"{name} holds NaN or infinite values")
    objectness, deltas = objectness[:, :height, :width], deltas[:, :height, :width]
    y, x = STRIDE * np.mgrid[:height, :width].astype(np.float32)
    shifts = np.stack([x, y, x, y], axis=-1)
    placed = (shifts[:, :, None] + bases).reshape(-1, 4)
    steps = deltas.reshape(ANCHORS, 4, height, width).transpose(2, 3, 0, 1).reshape(-1, 4)
    scores = objectness.transpose(1, 2, 0).ravel()
    limits = np.array([size[1], size[0]] * 2, np.float32) - 1
    boxes = np.minimum(np.maximum(_moved(placed, steps), 0), limits)
    large = (boxes[:, 2:] - boxes[:, :2] + 1 >= np.float32(STRIDE * scale_of(photo, config))).all(
        axis=1
    )
    boxes, scores = boxes[large], scores[large]
    order = np.argsort(-scores, kind="stable")[: config.proposals_before_nms]
    boxes = boxes[order]
    result: Floats = boxes[best_apart(boxes, _NMS, config.proposals)]
    return result


def _moved(bases: Floats, steps: Floats) -> Floats:
    """Boxes (N, 4) by what the network says of their anchors."""
    sides = bases[:, 2:] - bases[:, :2] + 1
    half = np.float32(0.5)
    centres = bases[:, :2] + half * sides + steps[:, :2] * sides
    sides = sides * np.exp(np.minimum(steps[:, 2:], np.float32(_LARGEST_STEP)))
    return np.concatenate([centres - half * sides, centres + half * sides], axis=1)
