"""Augmentation: an emoji is moved, put on a background, alone or with another; some look daubed.

Numbers from a numpy generator on the CPU (`Looks`) decide what is drawn. So a picture depends on
(seed, step) only, on every device. Drawing (`draw`) is a few tensor operations on a batch, on the
device that holds the pictures. Coordinates are -1..1 across the picture, x to the right, y down.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weights.train.data import LINES, Pack


class Background(IntEnum):
    WHITE = 0
    PLAIN = 1
    GRADIENT = 2
    DARK = 3
    SCENE = 4  # a dark room with a floor, strokes, and sometimes a glow and a fireplace


class Company(IntEnum):
    ALONE = 0
    TWICE = 1  # two of the same
    BESIDE = 2  # another emoji beside it
    ON_FIRE = 3  # flames above it


BACKGROUND_SHARES = (0.60, 0.10, 0.08, 0.10, 0.12)
COMPANY_SHARES = (0.91, 0.03, 0.04, 0.02)
FIRE = "1f525"

PALETTE = {
    "grey": (0.62, 0.62, 0.64),
    "black": (0.03, 0.03, 0.04),
    "red": (0.85, 0.16, 0.16),
    "orange": (0.97, 0.58, 0.16),
    "yellow": (0.98, 0.86, 0.30),
    "green": (0.36, 0.70, 0.32),
    "teal": (0.20, 0.66, 0.66),
    "blue": (0.22, 0.45, 0.88),
    "light blue": (0.67, 0.85, 0.98),
    "purple": (0.55, 0.33, 0.78),
    "pink": (0.98, 0.70, 0.80),
    "brown": (0.48, 0.31, 0.20),
    "beige": (0.93, 0.87, 0.76),
}
COLOUR_NAMES = list(PALETTE)
COLOURS = np.array(list(PALETTE.values()), np.float32)
BLACK = COLOUR_NAMES.index("black")
WARM = [COLOUR_NAMES.index(name) for name in ("red", "orange", "yellow", "yellow")]
LUMA = np.array([0.3, 0.59, 0.11])

# The strokes of a scene: capsules, in the order in which they are painted.
ARCH, BEHIND, LOGS = range(3), range(3, 6), range(6, 8)  # LOGS in front of the subject
STROKES = 8
STROKE_CHANCES = np.array([1, 1, 1, 0.4, 0.3, 0.2, 0.3, 0.3])

# These subjects are not flipped, because flipped they mean something else: writing, clocks, arrows,
# left and right.
NO_FLIP_GROUPS = {"symbols", "flags"}
NO_FLIP_WORDS = set(
    """left right clock o'clock facing arrow button keycap letter letters book page calendar date
    number hundred abc card mahjong thirty tear-off receipt newspaper label ticket music note
    notes score keyboard quarter crescent""".split()  # noqa: SIM905
)
ALWAYS_ALONE = {"symbols", "flags"}  # groups that get no company


def may_flip(row: dict) -> bool:
    words = set(row["text"].replace("-", " ").split()) | set(row["text"].split())
    return row["group"] not in NO_FLIP_GROUPS and not words & NO_FLIP_WORDS


class Look(NamedTuple):
    """The part of a picture's looks that its caption names."""

    background: Background
    colour: str
    company: Company
    rough: bool
    arch: bool


@dataclass
class Looks:
    """How each of B pictures is augmented. Every field has B rows."""

    background: np.ndarray  # a Background
    colour: np.ndarray  # the background's main one, an index into PALETTE
    company: np.ndarray  # a Company
    other: np.ndarray  # index of the second picture; its own index if there is none
    rough: np.ndarray  # bool: as if daubed by hand
    ink: np.ndarray  # bool: line drawings on a dark background are white
    arch: np.ndarray  # bool: a fireplace
    place: np.ndarray  # (B, 4): x, y, size and flip of the first picture
    place2: np.ndarray  # (B, 4): of the second picture
    ground: np.ndarray  # (B, 3, 3): colours of the two ends of the background, and of the floor
    slope: np.ndarray  # (B, 3): direction of the gradient, and height of the floor
    glow: np.ndarray  # (B, 6): x, y, radius (0: no glow), colour
    strokes: np.ndarray  # (B, STROKES, 8): two ends, radius (0: no stroke), colour
    wobble: np.ndarray  # (B, 2, 4, 4): how a rough picture is bent

    def of(self, i: int) -> Look:
        """The look of picture i, for its caption."""
        return Look(
            Background(self.background[i]),
            COLOUR_NAMES[self.colour[i]],
            Company(self.company[i]),
            bool(self.rough[i]),
            bool(self.arch[i]),
        )


class Stylist:
    """Chooses looks for the pictures of a pack."""

    def __init__(self, rows: list[dict]):
        self.style = np.array([row["style"] for row in rows])
        self.lines = np.isin(self.style, LINES)
        self.flip = np.array([may_flip(row) for row in rows])
        self.of_style = {style: np.flatnonzero(self.style == style) for style in set(self.style)}
        self.fire = {row["style"]: i for i, row in enumerate(rows) if row["codepoint"] == FIRE}
        self.code = np.array([row["codepoint"] for row in rows])
        self.social = np.array([row["group"] not in ALWAYS_ALONE for row in rows])

    def __call__(
        self, which: np.ndarray, rng: np.random.Generator, plain: bool | np.ndarray = False
    ) -> Looks:
        """Looks for the pictures `which`. Those that are `plain` get only a small shift.

        The order of the draws must not change: it decides which pictures belong to a seed.
        """
        n, lines = len(which), self.lines[which]
        plain = np.broadcast_to(plain, n)
        background = self.backgrounds(which, plain, rng)
        company, other = self.companions(which, plain, rng)
        on = [background == Background.SCENE, background == Background.WHITE]
        rough = rng.uniform(size=n) < np.select(on, [0.6, 0.06], 0.2)
        rough = rough & ~lines & (company == Company.ALONE) & ~plain
        first, second = places(background, company, plain, rng)
        colour, ground, slope = grounds(background, rng)
        glow = glows(background, first, rng)
        arch, strokes = scene_strokes(background, first, ground, rng)
        flip, flip2 = self.flips(which, plain, rng), self.flips(other, plain, rng)
        return Looks(
            background=background,
            colour=colour,
            company=company,
            other=other,
            rough=rough,
            ink=lines & ((ground[:, :2] @ LUMA).min(1) < 0.45),
            arch=arch,
            place=np.column_stack([first, flip]),
            place2=np.column_stack([second, flip2]),
            ground=ground,
            slope=slope,
            glow=glow,
            strokes=strokes,
            wobble=rng.normal(size=(n, 2, 4, 4)),
        )

    def backgrounds(
        self, which: np.ndarray, plain: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        n = len(which)
        background = rng.choice(len(Background), n, p=BACKGROUND_SHARES)
        # Half of all fires are in a scene, so that many of them are in a fireplace.
        background[(self.code[which] == FIRE) & (rng.uniform(size=n) < 0.5)] = Background.SCENE
        background[plain] = Background.WHITE
        return background

    def companions(
        self, which: np.ndarray, plain: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(company, index of the second picture)."""
        company = rng.choice(len(Company), len(which), p=COMPANY_SHARES)
        company[plain | ~self.social[which]] = Company.ALONE
        other = which.copy()
        for i in np.flatnonzero((company == Company.BESIDE) | (company == Company.ON_FIRE)):
            style = self.style[which[i]]
            other[i] = rng.choice(self.of_style[style])
            if company[i] == Company.ON_FIRE:
                other[i] = self.fire.get(style, which[i])
            if self.code[other[i]] == self.code[which[i]] or not self.social[other[i]]:
                company[i], other[i] = Company.ALONE, which[i]
        return company, other

    def flips(self, which: np.ndarray, plain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(n,) bool: half of the pictures that may be flipped."""
        return self.flip[which] & (rng.uniform(size=len(which)) < 0.5) & ~plain


def places(
    background: np.ndarray, company: np.ndarray, plain: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """x, y and size (n, 3) of the first and of the second picture."""
    n, uniform = len(background), rng.uniform
    # On white, half of the pictures stay as they are: these the network should learn best.
    still = plain | ((background == Background.WHITE) & (uniform(size=n) < 0.5))
    in_scene = background == Background.SCENE
    size = np.where(in_scene, uniform(0.5, 0.9, n), uniform(0.7, 1.06, n))
    size = np.where(still, 1.0, size)
    room = np.where(still, 0.0, np.clip(1.05 - size, 0.06, 0.25))
    x, y = uniform(-1, 1, n) * room, uniform(-1, 1, n) * room

    x2, y2, size2 = x, y, size
    small = uniform(0.48, 0.58, n)
    apart = (company == Company.TWICE) | (company == Company.BESIDE)
    side = rng.choice([-0.46, 0.46], n)
    x2, y2 = np.where(apart, -side, x), np.where(apart, uniform(-0.1, 0.1, n), y)
    x, y = np.where(apart, side, x), np.where(apart, uniform(-0.1, 0.1, n), y)
    size, size2 = np.where(apart, small, size), np.where(apart, small, size2)

    on_fire = company == Company.ON_FIRE  # the flames are smaller, and above the first picture
    size2 = np.where(on_fire, size * uniform(0.55, 0.8, n), size2)
    size = np.where(on_fire, size * 0.85, size)
    y, y2 = np.where(on_fire, y + 0.14, y), np.where(on_fire, y - 0.25, y2)
    return np.stack([x, y, size], axis=1), np.stack([x2, y2, size2], axis=1)


def grounds(
    background: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """colour (n,), ground (n, 3, 3) and slope (n, 3), as in Looks.

    A dark background is a dim version of any colour. In a scene each part has its own.
    """
    n, uniform = len(background), rng.uniform
    white, dark = background == Background.WHITE, background == Background.DARK
    dim = dark | (background == Background.SCENE)
    colour = rng.integers(len(PALETTE), size=n)
    colour = np.where(dim, BLACK, colour)
    second = rng.integers(len(PALETTE), size=n)
    jitter = uniform(-0.06, 0.06, (n, 3, 3))
    ground = COLOURS[np.stack([colour, colour, colour], axis=1)] + jitter
    blend = uniform(0.4, 1.0, (n, 1))
    blend = np.where((background == Background.GRADIENT)[:, None], blend, 0.0)
    ground[:, 1] += blend * (COLOURS[second] - ground[:, 1])
    dim_colours = COLOURS[rng.integers(len(PALETTE), size=(n, 3))] * uniform(0.03, 0.35, (n, 3, 1))
    ground = np.where(dim[:, None, None], dim_colours, ground)
    ground[dark, 1] = ground[dark, 0] * uniform(0.5, 1.3, (np.count_nonzero(dark), 1))
    ground[white] = 1.0
    slope = np.stack([*rng.normal(size=(2, n)), uniform(0.25, 0.8, n)], axis=1)
    slope[:, :2] /= np.linalg.norm(slope[:, :2], axis=1, keepdims=True)
    slope[background != Background.SCENE, 2] = 9.0  # far below the picture: no floor
    return colour, ground.clip(0, 1), slope


def glows(background: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n, 6): in 6 of 10 scenes, a warm light behind the subject."""
    n, uniform = len(background), rng.uniform
    colour = COLOURS[rng.choice(WARM, n)] * uniform(0.6, 1.0, (n, 1))
    has_glow = (background == Background.SCENE) & (uniform(size=n) < 0.6)
    radius = np.where(has_glow, uniform(0.4, 0.9, n), 0.0)
    return np.column_stack([place[:, :2], radius, colour])


def scene_strokes(
    background: np.ndarray, place: np.ndarray, ground: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """arch (n,) and strokes (n, STROKES, 8), as in Looks: a scene's arch, strokes and logs."""
    n, uniform = len(background), rng.uniform
    in_scene = background == Background.SCENE
    arch = in_scene & (uniform(size=n) < 0.45)
    strokes = np.zeros((n, STROKES, 8))
    ends = uniform(-1, 1, (n, STROKES, 4))
    strokes[..., :4], strokes[..., 4] = ends, uniform(0.04, 0.14, (n, STROKES))
    strokes[..., 5:] = COLOURS[rng.integers(len(PALETTE), size=(n, STROKES))]
    strokes[..., 5:] *= uniform(0.05, 0.6, (n, STROKES, 1))

    w, top, foot = uniform(0.6, 0.85, n), uniform(-0.85, -0.6, n), uniform(0.3, 0.7, n)
    sides = [(-w, top, -w, foot), (-w, top, w, top), (w, top, w, foot)]  # left, above, right
    for j, corners in zip(ARCH, sides, strict=True):
        strokes[:, j, :4] = np.stack(corners, axis=1) + 0.2 * (ends[:, j] * 0.3)
        strokes[:, j, 4] = np.where(arch, uniform(0.08, 0.2, n), 0.0)
        strokes[:, j, 5:] = ground[:, 2] * 0.15
    x, y, size = place.T
    for j in LOGS:  # across the foot of the subject
        tilt = uniform(-0.2, 0.2, n)
        foot_y = y + 0.8 * size + uniform(-0.12, 0.08, n)
        left, right = x - 0.7 * size, x + 0.7 * size
        strokes[:, j, :4] = np.stack([left, foot_y - tilt, right, foot_y + tilt], axis=1)
    visible = (uniform(size=(n, STROKES)) < STROKE_CHANCES) & in_scene[:, None]
    strokes[..., 4] = np.where(visible, strokes[..., 4], 0.0)
    return arch, strokes


# ---- drawing -------------------------------------------------------------------------------------


class Canvas:
    """Pixel coordinates and grain for pictures of one size, on one device."""

    def __init__(self, size: int, device: torch.device):
        self.size = size
        axis = (torch.arange(size, device=device) + 0.5) * 2 / size - 1
        self.y, self.x = (v[None] for v in torch.meshgrid(axis, axis, indexing="ij"))  # (1, S, S)
        # The same grain in all pictures: dither in glows and paint.
        grain = torch.rand(size, size, generator=torch.Generator().manual_seed(size))
        self.grain = grain.to(device)


def draw(pack: Pack, which: np.ndarray, looks: Looks) -> Tensor:
    """The pictures `which` with these looks: (B, 3, S, S) in [-1, 1], on the pack's device."""
    device, size = pack.rgba.device, pack.rgba.shape[-1]
    canvas = Canvas(size, device)
    t = {
        field.name: torch.as_tensor(getattr(looks, field.name)).to(device)
        for field in fields(looks)
    }
    t = {name: value.float() if value.is_floating_point() else value for name, value in t.items()}
    image = paint_background(canvas, t["ground"], t["slope"])
    image = paint_glow(canvas, image, t["glow"], t["rough"])
    image = paint_strokes(canvas, image, t["strokes"], [*ARCH, *BEHIND])

    second = t["company"] != Company.ALONE
    if second.any():
        colour, alpha = place_pictures(canvas, pack.rgba[t["other"]], t["place2"], t["ink"])
        is_second = second[:, None, None].float()
        image = image * (1 - alpha * is_second)[:, None] + colour * is_second[:, None]
    rough = t["rough"]
    bend = F.interpolate(t["wobble"], size=(size, size), mode="bicubic")
    bend = bend.permute(0, 2, 3, 1) * 0.05 * rough[:, None, None, None]  # (B, S, S, 2)
    index = torch.from_numpy(which).to(device)
    colour, alpha = place_pictures(canvas, pack.rgba[index], t["place"], t["ink"], bend)
    if rough.any():
        colour[rough], alpha[rough] = daub(colour[rough], alpha[rough])
    image = image * (1 - alpha)[:, None] + colour
    return paint_strokes(canvas, image, t["strokes"], [*LOGS]).clamp(0, 1) * 2 - 1


def over(below: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """(B, 3, S, S): a colour over a picture. alpha (B, S, S)."""
    return below + (colour - below) * alpha[:, None]


def paint_background(canvas: Canvas, ground: Tensor, slope: Tensor) -> Tensor:
    """(B, 3, S, S): the gradient and the floor."""
    ground = ground[..., None, None]  # (B, 3, 3, 1, 1)
    sx, sy, horizon = (slope[:, k, None, None] for k in range(3))
    ramp = (0.5 + 0.5 * (canvas.x * sx + canvas.y * sy)).clamp(0, 1)[:, None]  # (B, 1, S, S)
    image = ground[:, 0] + (ground[:, 1] - ground[:, 0]) * ramp
    return over(image, ground[:, 2], ((canvas.y - horizon) * canvas.size / 4).clamp(0, 1))


def paint_glow(canvas: Canvas, image: Tensor, glow: Tensor, rough: Tensor) -> Tensor:
    gx, gy, radius = (glow[:, k, None, None] for k in range(3))
    squared_distance = (canvas.x - gx) ** 2 + (canvas.y - gy) ** 2
    light = torch.exp(-squared_distance / (radius**2 + 1e-6)) * (radius > 0)
    speckled = ((light * 1.4 - canvas.grain) * 4 + 0.5).clamp(0, 1)
    light = torch.where(rough[:, None, None], 0.5 * (light + speckled) * (light > 0.05), light)
    return over(image, glow[:, 3:, None, None], light)


def paint_strokes(canvas: Canvas, image: Tensor, strokes: Tensor, which: list[int]) -> Tensor:
    x, y = canvas.x, canvas.y
    for j in which:
        if not (strokes[:, j, 4] > 0).any():
            continue
        ax, ay, bx, by, radius = (strokes[:, j, k, None, None] for k in range(5))
        dx, dy = bx - ax, by - ay
        along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-6)
        along = along.clamp(0, 1)
        distance = torch.hypot(x - ax - along * dx, y - ay - along * dy)
        cover = ((radius - distance) * canvas.size / 2 + 0.5).clamp(0, 1) * (radius > 0)
        image = over(image, strokes[:, j, 5:, None, None], cover)
    return image


def place_pictures(
    canvas: Canvas, rgba: Tensor, place: Tensor, ink: Tensor, bend: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The pictures (B, 4, S, S) uint8, moved to their places.

    Returns colours (B, 3, S, S), multiplied by the transparency, and the transparency (B, S, S).
    """
    rgba = rgba.float() / 255
    colour = torch.where(ink[:, None, None, None], 0.95 - rgba[:, :3], rgba[:, :3])
    rgba = torch.cat([colour * rgba[:, 3:], rgba[:, 3:]], dim=1)
    px, py, scale, flip = (place[:, k, None, None] for k in range(4))
    u, v = (canvas.x - px) / scale * (1 - 2 * flip), (canvas.y - py) / scale
    grid = torch.stack([u.expand(len(rgba), -1, -1), v.expand(len(rgba), -1, -1)], dim=-1)
    if bend is not None:
        grid = grid + bend
    # Sampling skips pixels of a picture that is made small. So blur such a picture first.
    small = place[:, 2] < 0.75
    if small.any():
        soft = F.avg_pool2d(rgba, 3, stride=1, padding=1, count_include_pad=False)
        rgba = torch.where(small[:, None, None, None], soft, rgba)
    out = F.grid_sample(rgba, grid, mode="bilinear", align_corners=False)
    return out[:, :3], out[:, 3]


def daub(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """A picture as if painted with a thick brush: few colours, round shapes, no detail."""
    size = alpha.shape[-1]
    coarse = max(6, size // 8)
    rgba = torch.cat([colour, alpha[:, None]], dim=1)
    rgba = F.interpolate(F.adaptive_avg_pool2d(rgba, coarse), size=(size, size), mode="bicubic")
    shape = ((rgba[:, 3] - 0.4) * size / 10 + 0.5).clamp(0, 1)
    flat = (rgba[:, :3] / rgba[:, 3:].clamp(min=0.15)).clamp(0, 1)
    levels = flat * 4
    flat = (levels.floor() + ((levels - levels.floor() - 0.5) * 6 + 0.5).clamp(0, 1)) / 4
    return flat * shape[:, None], shape


def pieces(which: np.ndarray, looks: Looks, size: int) -> Iterator[tuple[np.ndarray, Looks]]:
    """(indices, looks) in pieces of `size`, to draw many pictures in little memory."""
    for i in range(0, len(which), size):
        fields = {name: value[i : i + size] for name, value in vars(looks).items()}
        yield which[i : i + size], Looks(**fields)


def on_white(rgba: Tensor) -> Tensor:
    """uint8 (B, 4, S, S) -> (B, 3, S, S) in [-1, 1]."""
    rgba = rgba.float() / 255
    return (rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]) * 2 - 1


def plain_and_augmented(pack: Pack, seed: int) -> tuple[Tensor, Tensor]:
    """All pictures on white, and as augmented for a seed: (N, 3, S, S) in [-1, 1] each."""
    everything = np.arange(len(pack.rows))
    looks = Stylist(pack.rows)(everything, np.random.default_rng(seed))
    return on_white(pack.rgba), draw(pack, everything, looks)


# ---- files ---------------------------------------------------------------------------------------


def to_image(picture: Tensor) -> Image.Image:
    """(3, S, S) in [-1, 1] -> a Pillow picture, rounded to 8 bits."""
    values = ((picture + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values)


def sheet(rows: list[Tensor], path: Path) -> None:
    """Write rows of pictures (N, 3, S, S) in 0..1, one below the other. Short rows end in white."""
    columns, (_, _, h, w) = max(map(len, rows)), rows[0].shape
    lines = []
    for row in rows:
        blank = torch.ones(columns - len(row), 3, h, w)
        lines.append(torch.cat([*torch.cat([row.cpu(), blank])], dim=-1))
    values = (torch.cat(lines, dim=-2) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(values.numpy()).save(path)
