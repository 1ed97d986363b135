"""Procedural scenes: several things of different looks on a varied background, drawn with Pillow.

A scene is a description (:class:`Scene`) that follows from a seed; :func:`draw` turns it into pixels. The description
holds everything that captions mention, so nothing has to be recognised in the picture.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageDraw

from ..arrays import BoolArray, ByteArray, FloatArray
from ..errors import ArgumentError
from .looks import LOOKS, Colour, Look, Shape, Size, Split

Backdrop: TypeAlias = Literal["plain", "graded", "speckled", "lined"]
Tint: TypeAlias = Literal["sand", "mint", "sky", "lavender", "grey"]
Point: TypeAlias = tuple[float, float]
BACKDROPS: tuple[Backdrop, ...] = get_args(Backdrop)
TINTS: tuple[Tint, ...] = get_args(Tint)

_RGB: dict[Colour, tuple[int, int, int]] = {
    "red": (214, 38, 40),
    "orange": (246, 132, 24),
    "yellow": (245, 214, 40),
    "green": (40, 150, 62),
    "blue": (34, 84, 205),
    "purple": (126, 50, 168),
    "pink": (244, 130, 186),
    "brown": (120, 72, 36),
    "black": (26, 26, 28),
    "white": (246, 246, 244),
}
_TINT_RGB: dict[Tint, tuple[int, int, int]] = {
    "sand": (226, 208, 168),
    "mint": (176, 226, 200),
    "sky": (164, 206, 240),
    "lavender": (204, 190, 232),
    "grey": (178, 180, 182),
}

#: Radius of a thing as a share of the square root of the scene's area, from and to.
_RADIUS: dict[Size, tuple[float, float]] = {"small": (0.095, 0.12), "large": (0.17, 0.205)}
#: (fewest patches, most patches, share of scenes), patches of 16 pixels; every bucket of FG-CLIP 2 occurs.
_PATCHES: tuple[tuple[int, int, float], ...] = (
    (48, 128, 0.45),
    (129, 256, 0.27),
    (257, 576, 0.14),
    (577, 784, 0.07),
    (785, 1100, 0.07),
)
_LONGEST_SIDE = 3.0  # times the shorter side; the largest thing still fits
_SHORTEST_SIDE = 48  # pixels
_PATCH = 16
_SUPERSAMPLING = 3
_REPEATS = 1.8  # of a texture, per radius
_ARM, _REACH = 0.32, 0.95  # half the width and half the length of the cross's bars, per radius
_ATTEMPTS = 60
_DARK = 130  # luma below which a colour is dark; no colour is so near that noise moves it across


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
        look: its size, texture, colour and shape.
        centre: x, y in pixels.
        radius: in pixels, of the circle that holds it.
        angle: rotation in radians.
    """

    look: Look
    centre: Point
    radius: float
    angle: float

    @property
    def outline(self) -> tuple[Point, ...]:
        """Its polygon, x and y in pixels."""
        turned = _turn(_POLYGONS[self.look.shape], self.angle)
        return tuple((self.centre[0] + self.radius * x, self.centre[1] + self.radius * y) for x, y in turned)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in pixels, around its outline."""
        xs, ys = zip(*self.outline, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Scene:
    """A scene to draw.

    Attributes:
        width, height: in pixels.
        backdrop, tint: pattern and colour of the background.
        things: three or four, none touching another, no two of one kind.
        seed: of the noise in the picture.
    """

    width: int
    height: int
    backdrop: Backdrop
    tint: Tint
    things: tuple[Thing, ...]
    seed: int


def make_scene(seed: int, split: Split = "test", size: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed.

    Args:
        seed: the same seed gives the same scene.
        split: split of the looks that it shows.
        size: width and height in pixels; by default the seed decides, so that every bucket of patches occurs.

    Raises:
        ArgumentError: the size is too small or too narrow for the things to be seen.
    """
    if size is not None and (min(size) < _SHORTEST_SIDE or max(size) > _LONGEST_SIDE * min(size)):
        raise ArgumentError(
            f"a scene of {size[0]}×{size[1]} is too small or too narrow; give at least {_SHORTEST_SIDE} pixels a side "
            f"and at most {_LONGEST_SIDE:g} times as many on the other."
        )
    random_ = random.Random(f"{split} {seed}")
    width, height = size or _random_size(random_)
    while True:
        things = _place(random_, split, width, height, count=random_.choice((3, 3, 4)))
        if things:
            break
    return Scene(
        width=width,
        height=height,
        backdrop=random_.choice(BACKDROPS),
        tint=random_.choice(TINTS),
        things=things,
        seed=random_.getrandbits(32),
    )


def draw(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB."""
    noise = np.random.default_rng(scene.seed)
    canvas = Image.fromarray(_background(scene, noise))
    for thing in scene.things:
        _draw_thing(canvas, thing, noise)
    grain = noise.normal(0.0, 2.5, (scene.height, scene.width, 1))
    return Image.fromarray(np.clip(np.asarray(canvas) + grain, 0, 255).astype(np.uint8))


def covers(thing: Thing, x: float, y: float) -> bool:
    """Whether a point, in pixels, lies inside a thing's outline (even-odd rule)."""
    inside = False
    corners = thing.outline
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) / (y2 - y1) * (x2 - x1):
            inside = not inside
    return inside


def _random_size(random_: random.Random) -> tuple[int, int]:
    (fewest, most, _), *_ = random_.choices(_PATCHES, [share for *_, share in _PATCHES])
    patches = math.exp(random_.uniform(math.log(fewest), math.log(most)))
    aspect = math.exp(random_.uniform(-1, 1) * math.log(_LONGEST_SIDE))
    side = _PATCH * patches**0.5
    return round(side * aspect**0.5), round(side / aspect**0.5)


def _place(random_: random.Random, split: Split, width: int, height: int, count: int) -> tuple[Thing, ...]:
    """Things that do not touch; empty if the attempts run out."""
    scale = (width * height) ** 0.5
    gap = 0.02 * scale
    looks: list[Look] = []
    while len(looks) < count:
        look = random_.choice(LOOKS[split])
        if all(look.kind != other.kind for other in looks):
            looks.append(look)
    placed: list[Thing] = []
    # Large things first, while there is room.
    for look in sorted(looks, key=lambda look: look.size != "large"):
        for _ in range(_ATTEMPTS):
            radius = random_.uniform(*_RADIUS[look.size]) * scale
            centre = (
                random_.uniform(radius + 1, width - radius - 1),
                random_.uniform(radius + 1, height - radius - 1),
            )
            if all(math.dist(centre, other.centre) > radius + other.radius + gap for other in placed):
                placed.append(Thing(look, centre, radius, angle=random_.uniform(-0.25, 0.25)))
                break
        else:
            return ()
    random_.shuffle(placed)
    return tuple(placed)


def _background(scene: Scene, noise: np.random.Generator) -> ByteArray:
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    scale = (scene.width * scene.height) ** 0.5
    direction = noise.uniform(0, math.tau)
    along = (x * math.cos(direction) + y * math.sin(direction)) / scale
    shade: FloatArray
    match scene.backdrop:
        case "plain":
            shade = np.zeros_like(along)
        case "graded":
            shade = 70 * (along - along.mean())
        case "speckled":
            coarse = noise.normal(0.0, 22.0, (scene.height // 3 + 1, scene.width // 3 + 1))
            shade = coarse.repeat(3, 0).repeat(3, 1)[: scene.height, : scene.width].astype(np.float32)
        case "lined":
            shade = np.where(along * 14 % 1 < 0.18, np.float32(-38), np.float32(0))
    colour = np.array(_jitter(_TINT_RGB[scene.tint], noise))
    return np.clip(colour + shade[..., None], 0, 255).astype(np.uint8)


def _draw_thing(canvas: Image.Image, thing: Thing, noise: np.random.Generator) -> None:
    left, top, right, bottom = thing.box
    x, y = math.floor(left) - 2, math.floor(top) - 2
    width, height = math.ceil(right) + 3 - x, math.ceil(bottom) + 3 - y
    size = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    outline = [((px - x) * _SUPERSAMPLING, (py - y) * _SUPERSAMPLING) for px, py in thing.outline]

    colour = _jitter(_RGB[thing.look.colour], noise)
    tile = Image.new("RGB", size, colour)
    if thing.look.texture != "plain":
        second = _second_colour(colour)
        tile.paste(second, mask=Image.fromarray(_pattern(thing, (x, y), size)))
    rim = max(2, round(0.05 * thing.radius * _SUPERSAMPLING))
    ImageDraw.Draw(tile).line([*outline, *outline[:2]], fill=(70, 70, 74), width=rim, joint="curve")

    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    canvas.paste(tile.reduce(_SUPERSAMPLING), (x, y), mask.reduce(_SUPERSAMPLING))


def _pattern(thing: Thing, corner: tuple[int, int], size: tuple[int, int]) -> ByteArray:
    """Mask of a thing's second colour, 255 inside and 0 outside, for a supersampled tile at ``corner``."""
    pixels = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    y = (pixels[0] / _SUPERSAMPLING + corner[1] - thing.centre[1]) / thing.radius
    x = (pixels[1] / _SUPERSAMPLING + corner[0] - thing.centre[0]) / thing.radius
    u = (x * math.cos(thing.angle) + y * math.sin(thing.angle)) * _REPEATS
    v = (y * math.cos(thing.angle) - x * math.sin(thing.angle)) * _REPEATS
    marked: BoolArray
    match thing.look.texture:
        case "striped":
            marked = (u + v) / math.sqrt(2) % 1 < 0.5
        case "dotted":
            marked = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.3**2
        case "checkered":
            marked = (np.floor(u * 0.9) + np.floor(v * 0.9)) % 2 == 0
        case "plain":
            marked = np.zeros(x.shape, dtype=np.bool_)
    return np.where(marked, np.uint8(255), np.uint8(0))


def _jitter(colour: tuple[int, int, int], noise: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(value + noise.normal(0, 5), 0, 255)) for value in colour)
    return red, green, blue


def _second_colour(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """A lighter shade of a dark colour and a darker shade of a light one."""
    target, share = (255, 0.62) if _luma(colour) < _DARK else (0, 0.5)
    red, green, blue = (round(value + (target - value) * share) for value in colour)
    return red, green, blue


def _luma(colour: tuple[int, int, int]) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def _turn(points: tuple[Point, ...], angle: float) -> tuple[Point, ...]:
    cos, sin = math.cos(angle), math.sin(angle)
    return tuple((x * cos - y * sin, x * sin + y * cos) for x, y in points)


def _ring(count: int, radii: tuple[float, ...] = (1.0,), start: float = -math.pi / 2) -> tuple[Point, ...]:
    """``count`` points around the origin, at the radii in turn."""
    angles = [start + math.tau * i / count for i in range(count)]
    return tuple(
        (radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)
    )


def _heart() -> tuple[Point, ...]:
    angles = [math.tau * i / 40 for i in range(40)]
    return tuple(
        (
            16 * math.sin(a) ** 3 / 17,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) + 2.5) / 17,
        )
        for a in angles
    )


def _moon() -> tuple[Point, ...]:
    """The unit circle less a smaller one on its right."""
    bite, shift = 0.85, 0.55
    x = (1 - bite**2 + shift**2) / (2 * shift)
    y = math.sqrt(1 - x**2)
    outer, inner = math.atan2(y, x), math.atan2(y, x - shift)
    outward = [outer + (math.tau - 2 * outer) * i / 32 for i in range(33)]
    back = [math.tau - inner - (math.tau - 2 * inner) * i / 24 for i in range(1, 24)]
    return tuple((math.cos(a), math.sin(a)) for a in outward) + tuple(
        (shift + bite * math.cos(a), bite * math.sin(a)) for a in back
    )


#: Outlines inside the unit circle, y downwards.
_POLYGONS: dict[Shape, tuple[Point, ...]] = {
    "circle": tuple((0.92 * x, 0.92 * y) for x, y in _ring(48)),
    "square": tuple((1.12 * x, 1.12 * y) for x, y in ((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7))),
    "triangle": _ring(3),
    "diamond": ((0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)),
    "star": _ring(10, (1.0, 0.45)),
    "cross": (
        (-_ARM, -_REACH),
        (_ARM, -_REACH),
        (_ARM, -_ARM),
        (_REACH, -_ARM),
        (_REACH, _ARM),
        (_ARM, _ARM),
        (_ARM, _REACH),
        (-_ARM, _REACH),
        (-_ARM, _ARM),
        (-_REACH, _ARM),
        (-_REACH, -_ARM),
        (-_ARM, -_ARM),
    ),
    "heart": _heart(),
    "moon": _moon(),
}
