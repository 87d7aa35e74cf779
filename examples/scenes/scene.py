"""What a scene is: a few coloured objects on a background, and how one is drawn at random."""

import dataclasses
from dataclasses import dataclass
from random import Random
from typing import Any

WIDTH, HEIGHT = 320, 240

SHAPES = ("ball", "box", "triangle", "star", "ring", "cross", "heart", "moon")
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 219),
    "yellow": (250, 211, 44),
    "purple": (142, 68, 190),
    "orange": (240, 135, 30),
    "pink": (250, 140, 190),
    "white": (245, 245, 245),
}
SIZES = {"small": (15, 18), "medium": (23, 27), "big": (34, 40)}
"""Half of an object's extent, in pixels."""
TEXTURES = ("plain", "striped", "dotted")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class SceneObject:
    """One object; `x` and `y` are its centre, `radius` half its extent, in pixels."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def box(self) -> Box:
        return (
            max(self.x - self.radius, 0.0),
            max(self.y - self.radius, 0.0),
            min(self.x + self.radius, float(WIDTH)),
            min(self.y + self.radius, float(HEIGHT)),
        )


@dataclass(frozen=True)
class Scene:
    """Objects, drawn in order, over a background that `background_seed` decides."""

    objects: tuple[SceneObject, ...]
    background_seed: int


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


def sample_scene(random: Random) -> Scene:
    """Draw a scene of 3 to 8 objects that may overlap a little."""
    objects: list[SceneObject] = []
    for _ in range(random.randint(3, 8)):
        kind = {
            "shape": random.choice(SHAPES),
            "colour": random.choice(list(COLOURS)),
            "size": random.choice(list(SIZES)),
            "texture": random.choice(TEXTURES),
        }
        if objects and random.random() < 0.2:  # twins, so that captions can count
            twin = random.choice(objects)
            kind.update(shape=twin.shape, colour=twin.colour)
        if placed := _place(kind, objects, random):
            objects.append(placed)
    if len(objects) < 3:
        return sample_scene(random)
    return Scene(tuple(objects), random.getrandbits(32))


def _place(kind: dict[str, str], others: list[SceneObject], random: Random) -> SceneObject | None:
    radius = random.uniform(*SIZES[kind["size"]])
    for _ in range(40):
        placed = SceneObject(
            **kind,
            x=random.uniform(radius, WIDTH - radius),
            y=random.uniform(radius, HEIGHT - radius),
            radius=radius,
            angle=random.uniform(-20, 20),
        )
        if all(overlap(placed.box, other.box) < 0.12 for other in others):
            return placed
    return None


def contrast_scene(scene: Scene, i: int, j: int, random: Random) -> Scene:
    """A scene that differs in one attribute of object `i`, or swaps one between `i` and `j`.

    Everything else, the background included, stays as it is.
    """
    objects = list(scene.objects)
    first, second = objects[i], objects[j]
    swaps = [name for name in ("shape", "colour") if getattr(first, name) != getattr(second, name)]
    if swaps and random.random() < 0.5:
        name = random.choice(swaps)
        objects[i] = _with(first, name, getattr(second, name))
        objects[j] = _with(second, name, getattr(first, name))
    else:
        name, values = random.choice([("shape", SHAPES), ("colour", tuple(COLOURS))])
        others = [value for value in values if value != getattr(first, name)]
        objects[i] = _with(first, name, random.choice(others))
    return dataclasses.replace(scene, objects=tuple(objects))


def _with(item: SceneObject, name: str, value: str) -> SceneObject:
    changes: dict[str, Any] = {name: value}
    return dataclasses.replace(item, **changes)
