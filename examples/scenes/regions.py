"""Cuts regions out of an image and computes their features, from the pixels alone.

It stands in for a bottom-up-attention detector, with as many regions: two boxes around every
object, with jitter, and distractors anywhere.
"""

from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.scenes.scene import HEIGHT, WIDTH, Box, Scene

FEATURE_DIM = 192
REGIONS = 36
_SIDE = 36
_Floats = npt.NDArray[np.float32]


def propose(scene: Scene, random: Random) -> list[Box]:
    """Propose REGIONS boxes as a detector would: each object twice, roughly, and distractors."""
    boxes = [_jitter(item.box, 0.08, random) for item in scene.objects]
    boxes += [_jitter(item.box, 0.15, random) for item in scene.objects]
    while len(boxes) < REGIONS:
        width, height = random.uniform(30, 120), random.uniform(30, 100)
        x, y = random.uniform(0, WIDTH - width), random.uniform(0, HEIGHT - height)
        boxes.append((x, y, x + width, y + height))
    random.shuffle(boxes)
    return boxes


def _jitter(box: Box, amount: float, random: Random) -> Box:
    width, height = box[2] - box[0], box[3] - box[1]
    x1 = box[0] + random.uniform(-amount, amount) * width
    y1 = box[1] + random.uniform(-amount, amount) * height
    x2 = box[2] + random.uniform(-amount, amount) * width
    y2 = box[3] + random.uniform(-amount, amount) * height
    return max(x1, 0.0), max(y1, 0.0), min(x2, float(WIDTH)), min(y2, float(HEIGHT))


def features(image: Image.Image, boxes: list[Box]) -> _Floats:
    """Compute one feature vector for every box: (R, FEATURE_DIM) float32.

    A 6 x 6 grid of mean colours, the same grid of contrasts, and histograms of edge directions in
    four quadrants.
    """
    crops = [
        np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box))
        for box in boxes
    ]
    pixels = np.stack(crops).astype(np.float32) / 255.0
    count, cell = len(boxes), _SIDE // 6
    grid = pixels.reshape(count, 6, cell, 6, cell, 3)
    colour = grid.mean(axis=(2, 4)).reshape(count, -1)
    contrast = grid.mean(axis=5).std(axis=(2, 4)).reshape(count, -1) * 4.0
    vectors = np.concatenate([colour * 2.0 - 0.8, contrast, _edges(pixels.mean(axis=3))], axis=1)
    result: _Floats = vectors.astype(np.float32)
    return result


def _edges(grey: _Floats) -> _Floats:
    """Edge strength by direction (12 bins) in four quadrants: (R, 48)."""
    dy, dx = np.gradient(grey, axis=(1, 2))
    strength = np.hypot(dx, dy)
    direction = (np.arctan2(dy, dx) + np.pi) / (2 * np.pi) * 12
    bins = np.minimum(direction.astype(np.int64), 11)
    histogram = np.zeros((len(grey), 2, 2, 12), np.float32)
    half = _SIDE // 2
    for row in range(2):
        for column in range(2):
            window = (
                slice(None),
                slice(row * half, (row + 1) * half),
                slice(column * half, (column + 1) * half),
            )
            for b in range(12):
                histogram[:, row, column, b] = (strength[window] * (bins[window] == b)).mean(
                    axis=(1, 2)
                )
    return histogram.reshape(len(grey), -1) * 20.0
