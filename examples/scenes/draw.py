"""Draws a scene with Pillow, at twice its size and then reduced, so that edges are smooth."""

import math
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from examples.scenes.scene import COLOURS, HEIGHT, WIDTH, Scene, SceneObject

_SCALE = 2
_Point = tuple[float, float]


def draw(scene: Scene) -> Image.Image:
    """Draw `scene` as an RGB image of WIDTH x HEIGHT pixels."""
    canvas = _background(Random(scene.background_seed))
    for item in scene.objects:
        _paste(canvas, item)
    return canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _background(random: Random) -> Image.Image:
    """A soft gradient with a few blurred patches, darker than the objects."""
    width, height = WIDTH // 4, HEIGHT // 4  # it is blurred anyway

    def muted() -> tuple[int, int, int]:
        base = random.randint(40, 110)
        red, green, blue = (base + random.randint(-18, 18) for _ in range(3))
        return red, green, blue

    turned = Image.linear_gradient("L").rotate(random.choice((0, 90, 180, 270)))
    start, end = (Image.new("RGB", (width, height), muted()) for _ in range(2))
    image = Image.composite(start, end, turned.resize((width, height)))
    pen = ImageDraw.Draw(image)
    for _ in range(random.randint(2, 6)):
        x, y = random.randint(0, width), random.randint(0, height)
        dx, dy = random.randint(4, 25), random.randint(4, 20)
        pen.ellipse((x - dx, y - dy, x + dx, y + dy), fill=muted())
    soft = image.filter(ImageFilter.GaussianBlur(2))
    return soft.resize((WIDTH * _SCALE, HEIGHT * _SCALE), Image.Resampling.BICUBIC)


def _paste(canvas: Image.Image, item: SceneObject) -> None:
    radius = item.radius * _SCALE
    side = math.ceil(radius * 2)
    mask = _shape_mask(item, side)
    fill = Image.new("RGB", (side, side), COLOURS[item.colour])
    _texture(fill, item)
    rim = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5)))
    dark = tuple(int(channel * 0.45) for channel in COLOURS[item.colour])
    fill.paste(dark, mask=rim)
    corner = (round(item.x * _SCALE - radius), round(item.y * _SCALE - radius))
    shadow = mask.filter(ImageFilter.GaussianBlur(5)).point(lambda value: value // 3)
    canvas.paste((0, 0, 0), (corner[0] + 5, corner[1] + 6), mask=shadow)
    canvas.paste(fill, corner, mask=mask)


def _texture(fill: Image.Image, item: SceneObject) -> None:
    side, pen = fill.width, ImageDraw.Draw(fill)
    shade = tuple(int(channel * 0.5) for channel in COLOURS[item.colour])
    step = max(side // 5, 6)
    if item.texture == "striped":
        for start in range(-side, side, step):
            pen.line((start, 0, start + side, side), fill=shade, width=max(step // 3, 3))
    elif item.texture == "dotted":
        dot = max(step // 4, 2)
        for row, y in enumerate(range(0, side + step, step)):
            for x in range((row % 2) * step // 2, side + step, step):
                pen.ellipse((x - dot, y - dot, x + dot, y + dot), fill=shade)


def _shape_mask(item: SceneObject, side: int) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen, half = ImageDraw.Draw(mask), side / 2

    def circle(x: float, y: float, radius: float, fill: int) -> None:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    match item.shape:
        case "ball":
            circle(half, half, half - 1, 255)
        case "ring":
            circle(half, half, half - 1, 255)
            circle(half, half, half * 0.48, 0)
        case "moon":
            circle(half, half, half - 1, 255)
            circle(half * 1.45, half * 0.8, half * 0.8, 0)
        case _:
            pen.polygon([(half + x * half, half + y * half) for x, y in _outline(item.shape)], 255)
    return mask.rotate(item.angle, Image.Resampling.BICUBIC)


def _outline(shape: str) -> list[_Point]:
    """The corners of a shape inside the unit square from -1 to 1."""
    match shape:
        case "box":
            return [(-0.78, -0.78), (0.78, -0.78), (0.78, 0.78), (-0.78, 0.78)]
        case "triangle":
            return [(0.0, -0.95), (0.9, 0.75), (-0.9, 0.75)]
        case "cross":
            a, b = 0.95, 0.32
            return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a),
                    (-b, b), (-a, b), (-a, -b), (-b, -b)]  # fmt: skip
        case "star":
            spikes = [(i * math.pi / 5, 0.98 if i % 2 == 0 else 0.42) for i in range(10)]
            return [(r * math.sin(angle), -r * math.cos(angle)) for angle, r in spikes]
        case "heart":
            steps = [i * math.tau / 48 for i in range(48)]
            return [
                (
                    math.sin(t) ** 3 * 0.95,
                    -(
                        13 * math.cos(t)
                        - 5 * math.cos(2 * t)
                        - 2 * math.cos(3 * t)
                        - math.cos(4 * t)
                    )
                    / 17,
                )
                for t in steps
            ]
    raise ValueError(f"no outline for {shape!r}")
