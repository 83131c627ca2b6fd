"""Draws the picture of a shop item: one object of a kind, in a colour, with a pattern, in a setting.

Everything that a person would call chance is drawn from the item's own generator: where the object stands,
its size, tilt and side, the light, the exact shade, the clutter behind it and the grain. A kind is a list of
`Part`s, polygons in the object's own frame: x and y in about [-1, 1], y down, later parts in front.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from mmsrarec_ray.data.shop.law import VOCABULARY, Shop

SIZE = 96
# The object is painted this much larger and averaged down, which smooths its edges.
_FINER = 2

# What a part is painted with. The numbers are the grey values of the layer map the parts are drawn into.
_NOTHING, _BODY, _DETAIL, _FACE, _LEAF, _INK = range(6)

_SHADES = {
    "red": (205, 30, 35),
    "orange": (240, 130, 20),
    "yellow": (245, 215, 40),
    "green": (40, 150, 60),
    "blue": (35, 80, 205),
    "purple": (125, 45, 165),
    "pink": (245, 130, 180),
    "brown": (115, 70, 35),
    "black": (25, 25, 28),
    "white": (245, 245, 245),
}
_CREAM, _GREY = (243, 238, 222), (120, 122, 125)
_WOOD, _METAL = (95, 85, 80), (60, 62, 70)
_PAPER, _LEAF_GREEN = (250, 250, 240), (50, 120, 55)


class Part(NamedTuple):
    """A polygon of the object, float64 (n_points, 2), and what it is painted with."""

    paint: int
    outline: np.ndarray


def _polygon(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, float)


def _rectangle(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return _polygon((left, top), (right, top), (right, bottom), (left, bottom))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    """An ellipse or, between two angles in degrees (clockwise, 0 points right), an arc of one."""
    angle = np.radians(np.linspace(start, stop, 28))
    return np.column_stack([x + rx * np.cos(angle), y + ry * np.sin(angle)])


def _band(x: float, y: float, rx: float, ry: float, width: float, start: float, stop: float) -> np.ndarray:
    """A bent strip: what lies between an arc and the same arc `width` further in."""
    outer = _ellipse(x, y, rx, ry, start, stop)
    inner = _ellipse(x, y, rx - width, ry - width, start, stop)
    return np.concatenate([outer, inner[::-1]])


def _mug(rng: np.random.Generator) -> list[Part]:
    half = rng.uniform(0.52, 0.66)
    return [
        Part(_BODY, _band(half - 0.05, 0.02, 0.44, 0.46, 0.15, -90, 90)),
        Part(_BODY, _rectangle(-half, -0.72, half, 0.78)),
        Part(_DETAIL, _ellipse(0, -0.72, half, 0.15)),
    ]


def _lamp(rng: np.random.Generator) -> list[Part]:
    top = rng.uniform(0.22, 0.36)
    return [
        Part(_DETAIL, _rectangle(-0.07, -0.05, 0.07, 0.82)),
        Part(_DETAIL, _ellipse(0, 0.85, 0.44, 0.12)),
        Part(_BODY, _polygon((-top, -0.92), (top, -0.92), (0.78, 0.05), (-0.78, 0.05))),
    ]


def _chair(rng: np.random.Generator) -> list[Part]:
    foot = rng.uniform(0.9, 1.0)
    return [
        Part(_DETAIL, _rectangle(-0.32, 0.3, -0.21, foot - 0.18)),
        Part(_DETAIL, _rectangle(0.21, 0.3, 0.32, foot - 0.18)),
        Part(_DETAIL, _rectangle(-0.72, 0.3, -0.58, foot)),
        Part(_DETAIL, _rectangle(0.58, 0.3, 0.72, foot)),
        Part(_BODY, _rectangle(-0.54, -0.96, 0.54, 0.02)),
        Part(_BODY, _polygon((-0.56, 0.02), (0.56, 0.02), (0.76, 0.36), (-0.76, 0.36))),
    ]


def _bag(rng: np.random.Generator) -> list[Part]:
    flare, handle = rng.uniform(0.76, 0.92), rng.uniform(0.52, 0.66)
    return [
        Part(_DETAIL, _band(0, -0.3, 0.42, handle, 0.11, 180, 360)),
        Part(_BODY, _polygon((-0.66, -0.35), (0.66, -0.35), (flare, 0.86), (-flare, 0.86))),
    ]


def _shoe(rng: np.random.Generator) -> list[Part]:
    heel = rng.uniform(-0.62, -0.48)
    upper = _polygon((-0.92, heel), (-0.36, heel), (-0.1, -0.12), (0.5, 0.03), (0.9, 0.24), (0.96, 0.48), (-0.92, 0.48))
    return [
        Part(_BODY, upper),
        Part(_DETAIL, _rectangle(-0.96, 0.46, 1.0, 0.66)),
        Part(_DETAIL, _polygon((-0.34, -0.36), (-0.24, -0.42), (0.02, -0.08), (-0.08, -0.02))),
        Part(_DETAIL, _polygon((0.02, -0.13), (0.12, -0.15), (0.28, 0.06), (0.18, 0.08))),
    ]


def _clock(rng: np.random.Generator) -> list[Part]:
    hand = np.radians(rng.uniform(-20, 60))
    tip = 0.36 * np.array([np.cos(hand), np.sin(hand)])
    side = 0.06 * np.array([-np.sin(hand), np.cos(hand)])
    return [
        Part(_BODY, _ellipse(0, 0, 0.92, 0.92)),
        Part(_FACE, _ellipse(0, 0, 0.5, 0.5)),
        Part(_INK, _rectangle(-0.04, -0.42, 0.04, 0.04)),
        Part(_INK, np.array([-side, side, tip + side / 2, tip - side / 2])),
    ]


def _bottle(rng: np.random.Generator) -> list[Part]:
    neck, half = rng.uniform(-0.5, -0.34), rng.uniform(0.38, 0.46)
    right = [(0.17, -0.72), (0.18, neck), (half, neck + 0.26), (half, 0.96)]
    return [
        Part(_BODY, _polygon(*right, *[(-x, y) for x, y in reversed(right)])),
        Part(_DETAIL, _rectangle(-0.2, -0.98, 0.2, -0.7)),
    ]


def _book(rng: np.random.Generator) -> list[Part]:
    wide = rng.uniform(0.54, 0.68)
    return [
        Part(_FACE, _polygon((-0.62, -0.76), (wide + 0.08, -0.76), (wide + 0.16, 0.9), (-0.5, 0.9))),
        Part(_BODY, _rectangle(-0.72, -0.86, wide, 0.78)),
        Part(_DETAIL, _rectangle(-0.72, -0.86, -0.52, 0.78)),
    ]


def _hat(rng: np.random.Generator) -> list[Part]:
    crown = rng.uniform(0.74, 0.9)
    return [
        Part(_BODY, _ellipse(0, 0.36, 0.98, 0.25)),
        Part(_BODY, _ellipse(0, 0.28, 0.54, crown, 180, 360)),
        Part(_DETAIL, _rectangle(-0.54, 0.1, 0.54, 0.28)),
    ]


def _pot(rng: np.random.Generator) -> list[Part]:
    height = rng.uniform(0.36, 0.48)
    leaves = [Part(_LEAF, _ellipse(x, -0.12 - height, 0.2, height)) for x in (-0.36, 0.36, 0.0)]
    return [
        *leaves,
        Part(_BODY, _polygon((-0.6, 0.1), (0.6, 0.1), (0.42, 0.96), (-0.42, 0.96))),
        Part(_BODY, _rectangle(-0.72, -0.14, 0.72, 0.16)),
    ]


def _cushion(rng: np.random.Generator) -> list[Part]:
    """A square whose sides are drawn in, so that the corners stick out."""
    angle = np.linspace(0, 2 * np.pi, 49)[:-1]
    reach = 0.8 / np.maximum(abs(np.cos(angle)), abs(np.sin(angle))) ** rng.uniform(0.7, 0.85)
    rim = np.column_stack([reach * np.cos(angle), reach * np.sin(angle)])
    return [Part(_BODY, rim), Part(_DETAIL, _ellipse(0, 0, 0.1, 0.1))]


def _umbrella(rng: np.random.Generator) -> list[Part]:
    """A dome with a scalloped rim over a stick with a crook."""
    dome = _ellipse(0, 0.02, 0.98, rng.uniform(0.8, 0.94), 180, 360)
    rim = _polygon((0.66, -0.12), (0.33, 0.02), (0, -0.12), (-0.33, 0.02), (-0.66, -0.12))
    return [
        Part(_DETAIL, _rectangle(-0.05, -0.96, 0.05, 0.78)),
        Part(_DETAIL, _band(0.17, 0.74, 0.22, 0.24, 0.1, 0, 180)),
        Part(_BODY, np.concatenate([dome, rim])),
    ]


_PARTS: dict[str, Callable[[np.random.Generator], list[Part]]] = {
    "mug": _mug,
    "lamp": _lamp,
    "chair": _chair,
    "bag": _bag,
    "shoe": _shoe,
    "clock": _clock,
    "bottle": _bottle,
    "book": _book,
    "hat": _hat,
    "pot": _pot,
    "cushion": _cushion,
    "umbrella": _umbrella,
}


class _Pose(NamedTuple):
    """Where the object stands: centre and half its height in pixels, tilt in radians, the side it faces."""

    x: float
    y: float
    scale: float
    tilt: float
    side: int
    slimness: float

    def place(self, outline: np.ndarray) -> np.ndarray:
        """Object frame to picture pixels, float64 (n_points, 2)."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        turned = (outline * (self.side, self.slimness)) @ np.array([[cos, sin], [-sin, cos]])
        return turned * self.scale + (self.x, self.y)


def _draw_pose(rng: np.random.Generator) -> _Pose:
    scale = rng.uniform(26, 40)
    x, y = SIZE / 2 + rng.uniform(-1, 1, 2) * (SIZE / 2 - 2 - scale)
    side = 1 if rng.random() < 0.5 else -1
    return _Pose(x, y, scale, rng.uniform(-0.26, 0.26), side, rng.uniform(0.9, 1.1))


def _shade(rng: np.random.Generator, colour: tuple[int, int, int], spread: float) -> np.ndarray:
    """A colour under some light: brightness and, by up to `spread` levels, hue vary. float64 (3,)."""
    return np.clip(np.array(colour) * rng.uniform(0.88, 1.08) + rng.uniform(-spread, spread, 3), 0, 255)


def _grid(finer: int) -> tuple[np.ndarray, np.ndarray]:
    """The x and y of every pixel of a picture `finer` times finer, in picture pixels: float32, square."""
    y, x = np.mgrid[0 : SIZE * finer, 0 : SIZE * finer].astype(np.float32) / finer
    return x, y


def _pattern(rng: np.random.Generator, pattern: str, pose: _Pose) -> np.ndarray:
    """Where the second colour goes: bool, a finer picture. It turns and grows with the object."""
    angle = pose.tilt + rng.uniform(-0.3, 0.3) + (np.pi / 2 if rng.random() < 0.5 else 0)
    period = rng.uniform(0.25, 0.35) * pose.scale
    shift = rng.uniform(0, 1, 2)
    x, y = _grid(_FINER)
    along = ((x - pose.x) * np.cos(angle) + (y - pose.y) * np.sin(angle)) / period + shift[0]
    across = ((y - pose.y) * np.cos(angle) - (x - pose.x) * np.sin(angle)) / period + shift[1]
    if pattern == "plain":
        return np.zeros(x.shape, bool)
    if pattern == "striped":
        return along % 1 < 0.46
    if pattern == "dotted":
        return (along % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.3**2
    if pattern == "checked":
        return (np.floor(along / 0.62) + np.floor(across / 0.62)) % 2 > 0
    if pattern == "zigzag":
        fold = abs((across / 1.5) % 1 - 0.5) * 1.8
        return ((along + fold) / 0.95) % 1 < 0.44
    raise ValueError(f"pattern must be one of {VOCABULARY['pattern']}. Got {pattern!r}.")


def _setting(rng: np.random.Generator, setting: str) -> np.ndarray:
    """The ground the object stands before: float32 (SIZE, SIZE, 3)."""
    x, y = _grid(1)
    ground = np.empty((SIZE, SIZE, 3), np.float32)
    horizon = int(rng.uniform(0.55, 0.75) * SIZE)
    if setting == "studio":
        ground[:] = _shade(rng, (196, 197, 200), 14)
        ground += (y[..., None] - SIZE / 2) * rng.uniform(-0.5, 0.2)
    elif setting == "kitchen":
        tile = rng.integers(12, 20)
        ground[:] = _shade(rng, (205, 195, 175), 12)
        ground[(x % tile < 1) | (y % tile < 1)] *= 0.86
        ground[horizon:] = _shade(rng, (160, 125, 90), 9)
    elif setting == "garden":
        ground[:horizon] = _shade(rng, (165, 200, 225), 9)
        ground[horizon:] = _shade(rng, (120, 165, 95), 9)
        ground[horizon:] *= rng.uniform(0.9, 1.1, (SIZE - horizon, SIZE, 1))
    else:
        raise ValueError(f"setting must be one of {VOCABULARY['setting']}. Got {setting!r}.")
    return ground + rng.normal(0, rng.uniform(1, 7), (SIZE, SIZE, 1))


def _clutter(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """The ground with up to three small things on it, float32 (SIZE, SIZE, 3). They carry no attribute."""
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        x, y = rng.uniform(0, SIZE, 2)
        reach = rng.uniform(4, 10)
        ink = tuple(int(level) for level in rng.integers(40, 230, 3))
        match rng.integers(3):
            case 0:
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=ink)
            case 1:
                pen.polygon([(x, y - reach), (x + reach, y + reach), (x - reach, y + reach)], fill=ink)
            case _:
                pen.line((x - reach, y, x + 1.5 * reach, y + rng.uniform(-reach, reach)), fill=ink, width=2)
    return np.asarray(image, np.float32)


def _layers(parts: list[Part], pose: _Pose) -> np.ndarray:
    """Which paint covers each pixel of the finer picture: uint8, square. Every part has an inked edge."""
    canvas = Image.new("L", (SIZE * _FINER, SIZE * _FINER), _NOTHING)
    pen = ImageDraw.Draw(canvas)
    for paint, outline in parts:
        points = [tuple(point) for point in pose.place(outline) * _FINER]
        pen.polygon(points, fill=paint)
        pen.line([*points, points[0]], fill=_INK, width=_FINER)
    return np.asarray(canvas)


def _paint(rng: np.random.Generator, layers: np.ndarray, colour: str, pattern: str, pose: _Pose) -> np.ndarray:
    """The object's own colours on the finer picture: float32 (..., 3). Beside the object they mean nothing."""
    main = _shade(rng, _SHADES[colour], 10)
    palette = np.zeros((6, 3), np.float32)
    palette[_DETAIL] = _shade(rng, _WOOD if rng.random() < 0.5 else _METAL, 8)
    palette[_FACE] = _shade(rng, _PAPER, 4)
    palette[_LEAF] = _shade(rng, _LEAF_GREEN, 10)
    palette[_INK] = main * 0.4
    second = _shade(rng, _GREY if colour == "white" else _CREAM, 6)

    x, _ = _grid(_FINER)
    light = 1 + (x - pose.x) / pose.scale * rng.uniform(-0.12, 0.12)
    body = np.where(_pattern(rng, pattern, pose)[..., None], second, main) * light[..., None]
    return np.where((layers == _BODY)[..., None], body, palette[layers])


def _average_down(finer: np.ndarray) -> np.ndarray:
    """A finer picture as means over its blocks: float (SIZE, SIZE, channels)."""
    return finer.reshape(SIZE, _FINER, SIZE, _FINER, -1).mean((1, 3))


def draw_picture(
    rng: np.random.Generator, kind: str, colour: str, pattern: str, setting: str
) -> tuple[Image.Image, np.ndarray]:
    """Draw an item.

    Returns the picture, RGB of SIZE x SIZE pixels, and the object's silhouette, float32 (SIZE, SIZE): how much
    of each pixel the object covers. Raises KeyError or ValueError for a word that is not in the vocabularies.
    """
    pose = _draw_pose(rng)
    ground = _clutter(rng, _setting(rng, setting))
    layers = _layers(_PARTS[kind](rng), pose)
    covered = (layers != _NOTHING)[..., None]
    silhouette = _average_down(covered).astype(np.float32)
    object_colours = _average_down(_paint(rng, layers, colour, pattern, pose) * covered)

    shadow = np.roll(silhouette, (2, 2), (0, 1))
    pixels = ground * (1 - 0.25 * shadow) * (1 - silhouette) + object_colours
    pixels = pixels * rng.uniform(0.92, 1.06) + rng.normal(0, 3, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), silhouette[..., 0]


def item_picture(shop: Shop, index: int) -> tuple[Image.Image, np.ndarray]:
    """The picture and silhouette of item `index` of a shop; it depends on the shop's seed and the index alone."""
    rng = np.random.default_rng([shop.seed, 3, index])
    words = {name: values[shop.attributes[name][index]] for name, values in VOCABULARY.items()}
    return draw_picture(rng, words["kind"], words["colour"], words["pattern"], words["setting"])
