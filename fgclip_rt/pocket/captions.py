"""Captions of a scene, in English and in Chinese, in many wordings.

Functions that word something take a ``phrasing``: a number that decides the wording and nothing else. One phrasing
words two statements alike, so a true and a false caption differ only in their content.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias, TypeVar, get_args

from .looks import ALL_LOOKS, ATTRIBUTES, Look
from .scenes import Scene, Thing

_T = TypeVar("_T")
Language: TypeAlias = Literal["en", "zh"]
Relation: TypeAlias = Literal["left", "right", "above", "below"]
Place: TypeAlias = tuple[int, int]
Change: TypeAlias = Literal["size", "texture", "colour", "shape", "relation"]

LANGUAGES: tuple[Language, ...] = get_args(Language)
CHANGES: tuple[Change, ...] = get_args(Change)

_OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
#: A relation is clear if two things are this many times further apart along one axis than along the other.
_CLEARLY = 1.5


@dataclass(frozen=True)
class Statement:
    """Content of a short caption: two things of a scene, and the first one's relation to the second if it is clear."""

    first: Look
    relation: Relation | None
    second: Look


def state(scene: Scene, choice: int) -> Statement:
    """One of the statements that are true of a scene; ``choice`` decides which."""
    first, second = random.Random(f"state {choice}").sample(scene.things, 2)
    return Statement(first.look, relation(first, second), second.look)


def relation(first: Thing, second: Thing) -> Relation | None:
    """The side of ``second`` on which ``first`` lies; None if it is clear along neither axis."""
    dx, dy = first.centre[0] - second.centre[0], first.centre[1] - second.centre[1]
    if abs(dx) > _CLEARLY * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > _CLEARLY * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def falsify(
    scene: Scene, statement: Statement, choice: int, looks: Collection[Look] = ALL_LOOKS
) -> tuple[Statement, Change]:
    """A statement that differs from a true one in one attribute or relation and is false of the scene, and the change.

    Args:
        scene: the scene.
        statement: a true statement about the scene.
        choice: decides the change and the new value.
        looks: the looks that the false statement may name.
    """
    random_ = random.Random(f"falsify {choice}")
    shown = {thing.look for thing in scene.things}
    while True:
        change = _pick(random_, CHANGES)
        if change == "relation":
            if statement.relation is not None:
                return replace(statement, relation=_OPPOSITE[statement.relation]), change
            continue
        of_first = _pick(random_, (True, False))
        look = statement.first if of_first else statement.second
        values = [value for value in ATTRIBUTES[change] if value != getattr(look, change)]
        other = look.with_(change, _pick(random_, values))
        if other not in shown and other in looks:
            return replace(statement, first=other) if of_first else replace(statement, second=other), change


def as_worded(statement: Statement, phrasing: int) -> Statement:
    """A statement as a short caption words it: unchanged, or turned round ("b right of a" for "a left of b")."""
    if random.Random(f"side {phrasing}").random() < 0.5:
        return statement
    opposite = None if statement.relation is None else _OPPOSITE[statement.relation]
    return Statement(statement.second, opposite, statement.first)


def short_caption(statement: Statement, language: Language, phrasing: int) -> str:
    """A statement as one sentence or phrase."""
    random_ = random.Random(f"short {phrasing}")
    worded = as_worded(statement, phrasing)
    first = box_caption(worded.first, language, random_.getrandbits(32))
    second = box_caption(worded.second, language, random_.getrandbits(32))
    templates = _PAIRS[language] if worded.relation is None else _RELATIONS[language][worded.relation]
    frame = _pick(random_, _FRAMES[language])
    return frame.format(_pick(random_, templates).format(first, second))


def placed_caption(look: Look, place: Place, language: Language, phrasing: int) -> str:
    """A caption of a thing and of the ninth of the picture that it lies in."""
    random_ = random.Random(f"placed {phrasing}")
    row, column = place
    template = _pick(random_, _PLACED_SHORT[language])
    return template.format(box_caption(look, language, random_.getrandbits(32)), _PLACES[language][row][column])


def place_of(thing: Thing, scene: Scene) -> Place:
    """The ninth of a scene, by row and column of three, that the centre of a thing lies in."""
    x, y = thing.centre
    return min(int(3 * y / scene.height), 2), min(int(3 * x / scene.width), 2)


def long_caption(scene: Scene, language: Language, phrasing: int) -> str:
    """A caption of a whole scene: the background, each thing with its place, and relations of listed neighbours."""
    random_ = random.Random(f"long {phrasing}")
    things = list(scene.things)
    random_.shuffle(things)
    opening = _pick(random_, _OPENINGS[language]).format(
        count=_COUNTS[language][len(things)],
        tint=_TINTS[language][scene.tint],
        backdrop=_BACKDROPS[language][scene.backdrop],
    )
    sentences = [opening]
    for thing in things:
        row, column = place_of(thing, scene)
        place = _PLACES[language][row][column]
        template = _pick(random_, _PLACED[language])
        sentences.append(template.format(place=place, thing=box_caption(thing.look, language, random_.getrandbits(32))))
    for first, second in pairwise(things):
        side = relation(first, second)
        names = [_brief(thing.look, language) for thing in (first, second)]
        # Without their textures, two things may share a name.
        if side is not None and names[0] != names[1]:
            sentences.append(_pick(random_, _ABOUT[language][side]).format(*names))
    sentences.append(_pick(random_, _CLOSINGS[language]))
    return _JOIN[language].join(sentences)


def box_caption(look: Look, language: Language, phrasing: int) -> str:
    """The name of one thing, with every attribute of its look, as a caption of its box."""
    random_ = random.Random(f"name {phrasing}")
    template = _pick(random_, _NAMES[language])
    return template.format(
        size=_pick(random_, _SIZES[language][look.size]),
        texture=_pick(random_, _TEXTURES[language][look.texture]),
        covered=_pick(random_, _COVERED[language][look.texture]),
        colour=_pick(random_, _COLOURS[language][look.colour]),
        shape=_pick(random_, _SHAPES[language][look.shape]),
    )


def _pick(random_: random.Random, options: Sequence[_T]) -> _T:
    """One of the options, by exactly one draw, so that the number of options does not shift later choices."""
    return options[int(random_.random() * len(options))]


def _brief(look: Look, language: Language) -> str:
    return _BRIEF[language].format(colour=_COLOURS[language][look.colour][0], shape=_SHAPES[language][look.shape][0])


#: Words by their meaning.
_Words: TypeAlias = dict[Language, dict[str, tuple[str, ...]]]

_SIZES: _Words = {
    "en": {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")},
    "zh": {"small": ("小小的", "很小的"), "large": ("大大的", "很大的")},
}
_TEXTURES: _Words = {
    "en": {
        "plain": ("plain", "solid"),
        "striped": ("striped", "stripy"),
        "dotted": ("dotted", "spotted"),
        "checkered": ("checkered", "checked"),
    },
    "zh": {
        "plain": ("纯色", "单色"),
        "striped": ("条纹", "斜纹"),
        "dotted": ("圆点", "波点"),
        "checkered": ("格子", "方格"),
    },
}
_COVERED: _Words = {
    "en": {
        "plain": ("with no pattern", "without any pattern"),
        "striped": ("with stripes", "covered in stripes"),
        "dotted": ("with dots", "covered in dots"),
        "checkered": ("with checks", "covered in checks"),
    },
    "zh": {
        "plain": ("没有花纹的", "不带花纹的"),
        "striped": ("带条纹的", "有条纹的"),
        "dotted": ("带圆点的", "有圆点的"),
        "checkered": ("带格子的", "有格子的"),
    },
}
_COLOURS: _Words = {
    "en": {
        "red": ("red",),
        "orange": ("orange",),
        "yellow": ("yellow",),
        "green": ("green",),
        "blue": ("blue",),
        "purple": ("purple", "violet"),
        "pink": ("pink",),
        "brown": ("brown",),
        "black": ("black",),
        "white": ("white",),
    },
    "zh": {
        "red": ("红色",),
        "orange": ("橙色", "橘色"),
        "yellow": ("黄色",),
        "green": ("绿色",),
        "blue": ("蓝色",),
        "purple": ("紫色",),
        "pink": ("粉色", "粉红色"),
        "brown": ("棕色", "褐色"),
        "black": ("黑色",),
        "white": ("白色",),
    },
}
_SHAPES: _Words = {
    "en": {
        "circle": ("circle", "disc"),
        "square": ("square",),
        "triangle": ("triangle",),
        "diamond": ("diamond", "rhombus"),
        "star": ("star", "five-pointed star"),
        "cross": ("cross", "plus sign"),
        "heart": ("heart",),
        "moon": ("moon", "crescent"),
    },
    "zh": {
        "circle": ("圆形", "圆"),
        "square": ("正方形", "方块"),
        "triangle": ("三角形",),
        "diamond": ("菱形",),
        "star": ("五角星", "星星"),
        "cross": ("十字", "十字形"),
        "heart": ("爱心", "心形"),
        "moon": ("月牙", "弯月"),
    },
}
_NAMES = {
    "en": (
        "a {size} {texture} {colour} {shape}",
        "the {size} {texture} {colour} {shape}",
        "a {size} {colour} {texture} {shape}",
        "a {size} {colour} {shape} {covered}",
        "the {size} {colour} {shape} {covered}",
    ),
    "zh": (
        "一个{size}{texture}{colour}{shape}",
        "一个{size}{colour}{texture}{shape}",
        "一个{covered}{size}{colour}{shape}",
        "{size}{colour}{texture}{shape}",
        "{covered}{size}{colour}{shape}",
    ),
}
_BRIEF = {"en": "the {colour} {shape}", "zh": "{colour}的{shape}"}
_FRAMES = {
    "en": ("{}", "{}", "a picture of {}", "an image: {}", "here we see {}"),
    "zh": ("{}", "{}", "图片里，{}", "画面：{}", "可以看到{}"),
}
_PAIRS = {
    "en": ("{} and {}", "{} together with {}", "both {} and {}", "{} as well as {}"),
    "zh": ("{}和{}", "{}与{}", "{}以及{}", "{}，还有{}"),
}
_RELATIONS: dict[Language, dict[Relation, tuple[str, ...]]] = {
    "en": {
        "left": ("{} left of {}", "{} to the left of {}"),
        "right": ("{} right of {}", "{} to the right of {}"),
        "above": ("{} above {}", "{} over {}"),
        "below": ("{} below {}", "{} under {}"),
    },
    "zh": {
        "left": ("{}在{}的左边", "{}位于{}左侧"),
        "right": ("{}在{}的右边", "{}位于{}右侧"),
        "above": ("{}在{}的上面", "{}位于{}上方"),
        "below": ("{}在{}的下面", "{}位于{}下方"),
    },
}
_COUNTS = {"en": {3: "three", 4: "four"}, "zh": {3: "三", 4: "四"}}
_TINTS = {
    "en": {"sand": "sand-coloured", "mint": "mint green", "sky": "sky blue", "lavender": "lavender", "grey": "grey"},
    "zh": {"sand": "沙色", "mint": "薄荷绿色", "sky": "天蓝色", "lavender": "淡紫色", "grey": "灰色"},
}
_BACKDROPS = {
    "en": {
        "plain": "even and smooth",
        "graded": "fading from light to dark",
        "speckled": "covered with fine speckles",
        "lined": "crossed by thin parallel lines",
    },
    "zh": {
        "plain": "均匀而平整",
        "graded": "由浅到深渐变",
        "speckled": "布满细小的斑点",
        "lined": "画着平行的细线",
    },
}
_OPENINGS = {
    "en": (
        "This picture shows {count} shapes on a {tint} background that is {backdrop}.",
        "There are {count} shapes here, and the {tint} background behind them is {backdrop}.",
        "On a {tint} background, {backdrop}, somebody has drawn {count} different shapes.",
    ),
    "zh": (
        "这幅画的背景是{tint}的，{backdrop}，上面一共画了{count}个不同的图形。",
        "图片中一共有{count}个图形，它们后面的背景是{tint}的，而且{backdrop}。",
        "在{tint}的背景上，{backdrop}，可以看到{count}个各不相同的图形。",
    ),
}
_PLACES = {
    "en": (
        ("upper left", "upper middle", "upper right"),
        ("middle left", "very middle", "middle right"),
        ("lower left", "lower middle", "lower right"),
    ),
    "zh": (
        ("左上方", "上方中央", "右上方"),
        ("左侧", "正中央", "右侧"),
        ("左下方", "下方中央", "右下方"),
    ),
}
_PLACED = {
    "en": (
        "In the {place} of the picture there is {thing}.",
        "In the {place} we can see {thing}.",
        "Somewhere in the {place} of the scene lies {thing}.",
    ),
    "zh": (
        "在画面的{place}，有{thing}。",
        "画面{place}的位置上可以看到{thing}。",
        "在整个画面的{place}画着{thing}。",
    ),
}
_PLACED_SHORT = {
    "en": ("{0} in the {1}", "{0} in the {1} of the picture", "in the {1}, {0}", "a picture with {0} in the {1}"),
    "zh": ("{1}有{0}", "{0}在{1}", "画面的{1}有{0}", "{0}位于画面{1}"),
}
_ABOUT: dict[Language, dict[Relation, tuple[str, ...]]] = {
    "en": {
        "left": ("Here {0} is to the left of {1}.", "To the right of {0} we find {1}."),
        "right": ("Here {0} is to the right of {1}.", "To the left of {0} we find {1}."),
        "above": ("Here {0} is above {1}.", "Further down than {0} we find {1}."),
        "below": ("Here {0} is below {1}.", "Further up than {0} we find {1}."),
    },
    "zh": {
        "left": ("其中{0}在{1}的左边。", "往{0}的右边看，就是{1}。"),
        "right": ("其中{0}在{1}的右边。", "往{0}的左边看，就是{1}。"),
        "above": ("其中{0}在{1}的上面。", "往{0}的下面看，就是{1}。"),
        "below": ("其中{0}在{1}的下面。", "往{0}的上面看，就是{1}。"),
    },
}
_CLOSINGS = {
    "en": (
        "None of these shapes touches another, and each of them differs from the rest.",
        "The shapes keep some distance from one another, and nothing else is drawn in this picture.",
    ),
    "zh": (
        "这些图形互相之间都没有接触，每一个都与其他的不同，整个画面看起来简单而清楚。",
        "各个图形之间都保持着一定的距离，谁也不碰到谁，除此之外画面上没有别的东西。",
    ),
}
_JOIN = {"en": " ", "zh": ""}
