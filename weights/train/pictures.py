"""Augmentation: an emoji, moved about, put on a background, alone or with another, now and then as
if daubed by hand.

What is drawn is decided by numbers from a numpy generator on the CPU (`Looks`), so that (seed,
step) tell it on any device; drawing itself (`draw`) is a few tensor operations on a whole batch,
where the pictures are. Coordinates are -1..1 across the picture, x to the right and y down.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weights.train.data import LINES, Pack

KINDS = ("white", "plain", "gradient", "dark", "scene")
TOGETHER = ("alone", "twice", "beside", "on fire")
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
COLOURS = np.array(list(PALETTE.values()), np.float32)
BLACK = list(PALETTE).index("black")
STROKES = 8  # capsules in a scene: three for an arch, three anywhere behind, two logs in front

# Flipped, these would say something else: writing, clocks, arrows, left and right.
NO_FLIP_GROUPS = {"symbols", "flags"}
NO_FLIP_WORDS = set(
    """left right clock o'clock facing arrow button keycap letter letters book page calendar date
    number hundred abc card mahjong thirty tear-off receipt newspaper label ticket music note
    notes score keyboard quarter crescent""".split()  # noqa: SIM905
)


def may_flip(row: dict) -> bool:
    words = set(row["text"].replace("-", " ").split()) | set(row["text"].split())
    return row["group"] not in NO_FLIP_GROUPS and not words & NO_FLIP_WORDS


@dataclass
class Looks:
    """What is done to each of B pictures; every field has B rows."""

    kind: np.ndarray  # of KINDS
    colour: np.ndarray  # of PALETTE: the background's main one
    together: np.ndarray  # of TOGETHER
    other: np.ndarray  # index of the second picture, its own if there is none
    rough: np.ndarray  # bool
    ink: np.ndarray  # bool: line drawings on something dark are white
    arch: np.ndarray  # bool
    place: np.ndarray  # (B, 4): x, y, size, flip of the first
    place2: np.ndarray  # of the second
    ground: np.ndarray  # (B, 3, 3): two ends of the background, the floor
    slope: np.ndarray  # (B, 3): direction of the gradient, height of the floor
    glow: np.ndarray  # (B, 6): x, y, radius, colour; radius 0 is none
    strokes: np.ndarray  # (B, STROKES, 8): two ends, radius (0: none), colour
    wobble: np.ndarray  # (B, 2, 4, 4): how a rough one is bent

    def of(self, i: int) -> dict:
        """What a caption should know of picture i."""
        return {
            "kind": KINDS[self.kind[i]],
            "colour": list(PALETTE)[self.colour[i]],
            "together": TOGETHER[self.together[i]],
            "rough": bool(self.rough[i]),
            "arch": bool(self.arch[i]),
        }


class Stylist:
    """Chooses looks for pictures of a pack; it knows what may be flipped, and who has company."""

    def __init__(self, rows: list[dict]):
        self.style = np.array([row["style"] for row in rows])
        self.lines = np.isin(self.style, LINES)
        self.flip = np.array([may_flip(row) for row in rows])
        self.rest = {style: np.flatnonzero(self.style == style) for style in set(self.style)}
        self.fire = {row["style"]: i for i, row in enumerate(rows) if row["codepoint"] == FIRE}
        self.code = np.array([row["codepoint"] for row in rows])
        alone = {"symbols", "flags"}
        self.social = np.array([row["group"] not in alone for row in rows])

    def __call__(
        self, which: np.ndarray, rng: np.random.Generator, plain: bool | np.ndarray = False
    ) -> Looks:
        """Looks for the pictures `which`; where `plain`, nothing is done but a small shift."""
        n, lines = len(which), self.lines[which]
        plain = np.broadcast_to(plain, n)
        uniform = rng.uniform

        kind = rng.choice(5, n, p=(0.60, 0.10, 0.08, 0.10, 0.12))
        kind[(self.code[which] == FIRE) & (uniform(size=n) < 0.5)] = 4  # in a fireplace
        kind[plain] = 0
        together = rng.choice(4, n, p=(0.91, 0.03, 0.04, 0.02))
        together[plain | ~self.social[which]] = 0
        other = which.copy()
        for i in np.flatnonzero(together >= 2):
            style = self.style[which[i]]
            other[i] = rng.choice(self.rest[style])
            if together[i] == 3:
                other[i] = self.fire.get(style, which[i])
            if self.code[other[i]] == self.code[which[i]] or not self.social[other[i]]:
                together[i], other[i] = 0, which[i]
        chance = np.select([kind == 4, kind == 0], [0.6, 0.06], 0.2)
        rough = (uniform(size=n) < chance) & ~lines & (together == 0) & ~plain

        def placed(x: np.ndarray, y: np.ndarray, size: np.ndarray, some: np.ndarray) -> np.ndarray:
            flip = self.flip[some] & (uniform(size=n) < 0.5) & ~plain
            return np.stack([x, y, size, flip], axis=1)

        # On white most stand as they came, so that drawing them well is what is learnt best.
        still = plain | ((kind == 0) & (uniform(size=n) < 0.5))
        size = np.where(
            still, 1.0, np.where(kind == 4, uniform(0.5, 0.9, n), uniform(0.7, 1.06, n))
        )
        room = np.where(still, 0.0, np.clip(1.05 - size, 0.06, 0.25))
        x, y = uniform(-1, 1, n) * room, uniform(-1, 1, n) * room
        x2, y2, size2 = x, y, size
        apart, small = together == 1, uniform(0.48, 0.58, n)
        apart = apart | (together == 2)
        side = rng.choice([-0.46, 0.46], n)
        x2, y2 = np.where(apart, -side, x), np.where(apart, uniform(-0.1, 0.1, n), y)
        x, y = np.where(apart, side, x), np.where(apart, uniform(-0.1, 0.1, n), y)
        burning = together == 3
        size, size2 = np.where(apart, small, size), np.where(apart, small, size2)
        size2 = np.where(burning, size * uniform(0.55, 0.8, n), size2)
        size = np.where(burning, size * 0.85, size)
        y, y2 = np.where(burning, y + 0.14, y), np.where(burning, y - 0.25, y2)

        # Backgrounds. Dark ones are dim versions of any colour; a scene's parts have one each.
        colour = rng.integers(len(PALETTE), size=n)
        colour = np.where(kind >= 3, BLACK, colour)
        second = rng.integers(len(PALETTE), size=n)
        jitter = uniform(-0.06, 0.06, (n, 3, 3))
        ground = COLOURS[np.stack([colour, colour, colour], axis=1)] + jitter
        blend = (kind == 2)[:, None] * uniform(0.4, 1.0, (n, 1))
        ground[:, 1] += blend * (COLOURS[second] - ground[:, 1])
        dim = COLOURS[rng.integers(len(PALETTE), size=(n, 3))] * uniform(0.03, 0.35, (n, 3, 1))
        ground = np.where((kind >= 3)[:, None, None], dim, ground)
        ground[kind == 3, 1] = ground[kind == 3, 0] * uniform(0.5, 1.3, (int((kind == 3).sum()), 1))
        ground[kind == 0] = 1.0
        ground = ground.clip(0, 1)
        slope = np.stack([*rng.normal(size=(2, n)), uniform(0.25, 0.8, n)], axis=1)
        slope[:, :2] /= np.linalg.norm(slope[:, :2], axis=1, keepdims=True)
        slope[kind != 4, 2] = 9.0
        dark_ink = (ground[:, :2] @ np.array([0.3, 0.59, 0.11])).min(1) < 0.45
        warm = COLOURS[rng.choice([2, 3, 4, 4], n)] * uniform(0.6, 1.0, (n, 1))
        lit = (kind == 4) & (uniform(size=n) < 0.6)
        radius = np.where(lit, uniform(0.4, 0.9, n), 0.0)
        glow = np.concatenate([np.stack([x, y, radius], axis=1), warm], axis=1)

        arch = (kind == 4) & (uniform(size=n) < 0.45)
        strokes = np.zeros((n, STROKES, 8))
        ends = uniform(-1, 1, (n, STROKES, 4))
        strokes[..., :4], strokes[..., 4] = ends, uniform(0.04, 0.14, (n, STROKES))
        strokes[..., 5:] = COLOURS[rng.integers(len(PALETTE), size=(n, STROKES))]
        strokes[..., 5:] *= uniform(0.05, 0.6, (n, STROKES, 1))
        w, top, foot = uniform(0.6, 0.85, n), uniform(-0.85, -0.6, n), uniform(0.3, 0.7, n)
        for j, (ax, ay, bx, by) in enumerate(
            [(-w, top, -w, foot), (-w, top, w, top), (w, top, w, foot)]
        ):
            strokes[:, j, :4] = np.stack([ax, ay, bx, by], axis=1) + 0.2 * (ends[:, j] * 0.3)
            strokes[:, j, 4] = np.where(arch, uniform(0.08, 0.2, n), 0.0)
            strokes[:, j, 5:] = ground[:, 2] * 0.15
        for j in (6, 7):  # logs: across the subject's foot
            tilt = uniform(-0.2, 0.2, n)
            foot_y = y + 0.8 * size + uniform(-0.12, 0.08, n)
            left, right = x - 0.7 * size, x + 0.7 * size
            strokes[:, j, :4] = np.stack([left, foot_y - tilt, right, foot_y + tilt], axis=1)
        there = uniform(size=(n, STROKES)) < np.array([1, 1, 1, 0.4, 0.3, 0.2, 0.3, 0.3])
        strokes[..., 4] *= there & (kind == 4)[:, None]

        return Looks(
            kind=kind,
            colour=colour,
            together=together,
            other=other,
            rough=rough,
            ink=lines & dark_ink,
            arch=arch,
            place=placed(x, y, size, which),
            place2=placed(x2, y2, size2, other),
            ground=ground,
            slope=slope,
            glow=glow,
            strokes=strokes,
            wobble=rng.normal(size=(n, 2, 4, 4)),
        )


def draw(pack: Pack, which: np.ndarray, looks: Looks) -> Tensor:
    """The pictures `which` as `looks` says: (B, 3, S, S) in [-1, 1], on the pack's device."""
    device, size = pack.rgba.device, pack.rgba.shape[-1]
    t = {
        field.name: torch.as_tensor(getattr(looks, field.name)).to(device)
        for field in fields(looks)
    }
    t = {name: value.float() if value.is_floating_point() else value for name, value in t.items()}
    axis = (torch.arange(size, device=device) + 0.5) * 2 / size - 1
    y, x = (v[None] for v in torch.meshgrid(axis, axis, indexing="ij"))  # (1, S, S)
    # One picture of grain, the same in all: dither in glows and paint.
    grain = torch.rand(size, size, generator=torch.Generator().manual_seed(size)).to(device)

    def over(below: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
        return below + (colour - below) * alpha[:, None]

    def paint_strokes(image: Tensor, which: range) -> Tensor:
        for j in which:
            if not (looks.strokes[:, j, 4] > 0).any():
                continue
            ax, ay, bx, by, radius = (t["strokes"][:, j, k, None, None] for k in range(5))
            dx, dy = bx - ax, by - ay
            along = ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-6)
            along = along.clamp(0, 1)
            distance = torch.hypot(x - ax - along * dx, y - ay - along * dy)
            cover = ((radius - distance) * size / 2 + 0.5).clamp(0, 1) * (radius > 0)
            image = over(image, t["strokes"][:, j, 5:, None, None], cover)
        return image

    def layer(index: Tensor, place: Tensor, bend: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) colours, already multiplied by (B, S, S) transparency."""
        rgba = pack.rgba[index].float() / 255
        ink = t["ink"][:, None, None, None]
        colour = torch.where(ink, 0.95 - rgba[:, :3], rgba[:, :3])
        rgba = torch.cat([colour * rgba[:, 3:], rgba[:, 3:]], dim=1)
        px, py, scale, flip = (place[:, k, None, None] for k in range(4))
        u, v = (x - px) / scale * (1 - 2 * flip), (y - py) / scale
        grid = torch.stack([u.expand(len(index), -1, -1), v.expand(len(index), -1, -1)], dim=-1)
        if bend is not None:
            grid = grid + bend
        # Sampling skips pixels where a picture is made small: blur those first.
        small = place[:, 2] < 0.75
        if small.any():
            soft = F.avg_pool2d(rgba, 3, stride=1, padding=1, count_include_pad=False)
            rgba = torch.where(small[:, None, None, None], soft, rgba)
        out = F.grid_sample(rgba, grid, mode="bilinear", align_corners=False)
        return out[:, :3], out[:, 3]

    ground = t["ground"][..., None, None]  # (B, 3, 3, 1, 1)
    sx, sy, horizon = (t["slope"][:, k, None, None] for k in range(3))
    ramp = (0.5 + 0.5 * (x * sx + y * sy)).clamp(0, 1)[:, None]  # (B, 1, S, S)
    image = ground[:, 0] + (ground[:, 1] - ground[:, 0]) * ramp  # (B, 3, S, S)
    image = over(image, ground[:, 2], ((y - horizon) * size / 4).clamp(0, 1))
    gx, gy, radius = (t["glow"][:, k, None, None] for k in range(3))
    light = torch.exp(-((x - gx) ** 2 + (y - gy) ** 2) / (radius**2 + 1e-6)) * (radius > 0)
    rough = t["rough"]
    speckled = ((light * 1.4 - grain) * 4 + 0.5).clamp(0, 1)
    light = torch.where(rough[:, None, None], 0.5 * (light + speckled) * (light > 0.05), light)
    image = over(image, t["glow"][:, 3:, None, None], light)
    image = paint_strokes(image, range(6))

    bend = F.interpolate(t["wobble"], size=(size, size), mode="bicubic")
    bend = bend.permute(0, 2, 3, 1) * 0.05 * rough[:, None, None, None]
    index = torch.from_numpy(which).to(device)
    second = t["together"] > 0
    if second.any():
        colour, alpha = layer(t["other"], t["place2"], None)
        shown = second[:, None, None].float()
        image = image * (1 - alpha * shown)[:, None] + colour * shown[:, None]
    colour, alpha = layer(index, t["place"], bend)
    if rough.any():
        daubed, shape = daub(colour[rough], alpha[rough])
        colour[rough], alpha[rough] = daubed, shape
    image = image * (1 - alpha)[:, None] + colour
    image = paint_strokes(image, range(6, STROKES))
    return image.clamp(0, 1) * 2 - 1


def daub(colour: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """A picture as a thick brush would leave it: few colours, round shapes, no detail."""
    size = alpha.shape[-1]
    coarse = max(6, size // 8)
    both = torch.cat([colour, alpha[:, None]], dim=1)
    both = F.interpolate(F.adaptive_avg_pool2d(both, coarse), size=(size, size), mode="bicubic")
    shape = ((both[:, 3] - 0.4) * size / 10 + 0.5).clamp(0, 1)
    flat = (both[:, :3] / both[:, 3:].clamp(min=0.15)).clamp(0, 1)
    steps = flat * 4
    flat = (steps.floor() + ((steps - steps.floor() - 0.5) * 6 + 0.5).clamp(0, 1)) / 4
    return flat * shape[:, None], shape


def sheet(rows: list[Tensor], path: Path) -> None:
    """Rows of pictures (N, 3, S, S) in 0..1, one below the other; shorter ones are filled up."""
    columns, (_, _, h, w) = max(map(len, rows)), rows[0].shape
    lines = []
    for row in rows:
        blank = torch.ones(columns - len(row), 3, h, w)
        lines.append(torch.cat([*torch.cat([row.cpu(), blank])], dim=-1))
    values = (torch.cat(lines, dim=-2) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(values.numpy()).save(path)
