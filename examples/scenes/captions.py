"""Writes English captions of a scene, and remembers which word names which object.

The links are for evaluation only: training sees the sentence and nothing else.
"""

from dataclasses import dataclass, field
from random import Random

from examples.scenes.scene import Scene, SceneObject

SHAPE_NAMES = {
    "ball": ("ball", "circle"),
    "box": ("box", "square"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
SIZE_NAMES = {"small": ("small", "tiny", "little"), "big": ("big", "large", "huge")}
TEXTURE_NAMES = {"striped": ("striped", "stripy"), "dotted": ("dotted", "spotted")}
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left of"),
    "right": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
OPENINGS = ("", "there is", "a picture of", "you can see", "this image has", "we see")


@dataclass
class Caption:
    """A sentence, and for each word that names an object the objects it may mean."""

    words: list[str] = field(default_factory=list)
    links: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return " ".join(self.words).replace(" ,", ",").replace(" .", ".")

    def say(self, phrase: str) -> None:
        self.words += phrase.split()

    def name(self, noun: str, objects: tuple[int, ...]) -> None:
        self.links[len(self.words)] = objects
        self.words.append(noun)


def describe(scene: Scene, random: Random, focus: tuple[int, ...] = ()) -> Caption:
    """Write one caption that mentions two to four objects with attributes and relations.

    Args:
        scene: what to describe.
        random: the source of every choice.
        focus: objects that must be mentioned first, each with its colour.
    """
    caption = Caption()
    caption.say(random.choice(OPENINGS))
    rest = [i for i in range(len(scene.objects)) if i not in focus]
    random.shuffle(rest)
    mentioned = [*focus, *rest][: random.choice((2, 3, 3, 4, 4))]
    first, second, *others = mentioned
    twins = () if focus else _twins(scene, first)
    if len(twins) in COUNTS:
        _count_phrase(caption, scene, first, twins, random)
        others = [i for i in [second, *others] if i not in twins]
    else:
        _noun_phrase(caption, scene.objects[first], first, random, bool(focus))
        relation = _relation(scene.objects[first], scene.objects[second])
        if random.random() < 0.7:
            caption.say(
                random.choice(("", "is", "that is")) + " " + random.choice(RELATIONS[relation])
            )
        else:
            caption.say(random.choice(("and", "with", "together with")))
        _noun_phrase(caption, scene.objects[second], second, random, bool(focus))
    for i, other in enumerate(others):
        caption.say(random.choice((", and", "and", "with")) if i == len(others) - 1 else ",")
        _noun_phrase(caption, scene.objects[other], other, random, False)
        if random.random() < 0.3:
            caption.say(_place(scene.objects[other]))
    caption.say(".")
    return caption


def _adjectives(item: SceneObject, random: Random, always_colour: bool) -> list[str]:
    words = []
    if item.size in SIZE_NAMES and random.random() < 0.7:
        words.append(random.choice(SIZE_NAMES[item.size]))
    if always_colour or random.random() < 0.95:
        words.append(item.colour)
    if item.texture in TEXTURE_NAMES and random.random() < 0.8:
        words.insert(random.randint(0, len(words)), random.choice(TEXTURE_NAMES[item.texture]))
    return words


def _noun_phrase(
    caption: Caption, item: SceneObject, index: int, random: Random, always_colour: bool
) -> None:
    noun = random.choices(SHAPE_NAMES[item.shape], k=1)[0]
    words = [*_adjectives(item, random, always_colour), noun]
    caption.say("an" if words[0][0] in "aeiou" else "a")
    caption.say(" ".join(words[:-1]))
    caption.name(noun, (index,))


def _count_phrase(
    caption: Caption, scene: Scene, first: int, twins: tuple[int, ...], random: Random
) -> None:
    item = scene.objects[first]
    noun = random.choice(SHAPE_NAMES[item.shape])
    caption.say(f"{COUNTS[len(twins)]} {item.colour}")
    caption.name(noun + ("es" if noun[-1] in "sx" else "s"), twins)


def _twins(scene: Scene, index: int) -> tuple[int, ...]:
    item = scene.objects[index]
    return tuple(
        i
        for i, other in enumerate(scene.objects)
        if (other.shape, other.colour) == (item.shape, item.colour)
    )


def _relation(item: SceneObject, other: SceneObject) -> str:
    dx, dy = item.x - other.x, item.y - other.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _place(item: SceneObject) -> str:
    vertical = "top" if item.y < 80 else "bottom" if item.y > 160 else ""
    horizontal = "left" if item.x < 107 else "right" if item.x > 213 else ""
    if not vertical and not horizontal:
        return "in the middle"
    if vertical and horizontal:
        return f"in the {vertical} {horizontal} corner"
    return f"at the {vertical}" if vertical else f"on the {horizontal} side"
