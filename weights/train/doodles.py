"""Pictures of anything: shapes, strokes, landscapes, textures, collages, and rough drawings.

At low noise the UNet must keep whatever is in a picture, so it must have seen everything that can
be drawn. `anything` draws that, without end. At medium noise a drawing of a thing must become the
thing gradually, so the UNet must have seen drawings between rough and good: `redrawn` makes them
from the pictures of the pack.

Everything is drawn with tensor operations on a batch, on the device that holds the pack, at twice
the size, and then halved. The random numbers come from a torch generator on that device. So a
picture depends on the seed, the batch and the kind of device. Coordinates are -1..1 across the
picture, x to the right, y down. Colours are 0..1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OVERSAMPLED = 2  # pictures are drawn at this multiple of their size
LAYERS = 12  # shapes in one picture, at most
PASTED = 4  # emoji in one picture, at most
COLOURS = 6  # of a redrawn picture, at most


class Hand:
    """Random numbers and coordinates for a batch of B pictures of S pixels."""

    def __init__(self, batch: int, size: int, generator: torch.Generator):
        self.batch, self.side = batch, OVERSAMPLED * size
        self.generator, self.device = generator, generator.device
        axis = (torch.arange(self.side, device=self.device) + 0.5) * 2 / self.side - 1
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        self.x, self.y = x[None], y[None]  # (1, H, W), H = W = the side

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape)"""
        values = torch.rand(self.batch, *shape, generator=self.generator, device=self.device)
        return low + (high - low) * values

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape)"""
        return torch.randn(self.batch, *shape, generator=self.generator, device=self.device)

    def chance(self, probability: float) -> Tensor:
        """(B,) bool"""
        return self.uniform() < probability

    def choice(self, *weights: float) -> Tensor:
        """(B,) int64: an index into the weights."""
        edges = torch.tensor(weights, device=self.device).cumsum(0)
        return torch.searchsorted(edges / edges[-1], self.uniform()).clamp(max=len(weights) - 1)

    def colour(self) -> Tensor:
        """(B, 3, 1, 1): strong, pale, dark and grey colours."""
        kind = self.choice(0.45, 0.25, 0.15, 0.15)
        saturation = torch.stack(
            [
                self.uniform(0.5, 1),
                self.uniform(0.05, 0.4),
                self.uniform(0.2, 1),
                self.uniform() * 0,
            ]
        )
        value = torch.stack(
            [self.uniform(0.6, 1), self.uniform(0.85, 1), self.uniform(0.05, 0.5), self.uniform()]
        )
        pick = kind[None]
        s, v = saturation.gather(0, pick)[0, :, None], value.gather(0, pick)[0, :, None]
        hue = self.uniform(0, 6)[:, None]
        offsets = torch.tensor([5.0, 3.0, 1.0], device=self.device)
        k = (offsets + hue) % 6  # (B, 3), from hue, saturation and value to red, green, blue
        rgb = v - v * s * torch.minimum(k, 4 - k).clamp(0, 1)
        return rgb[..., None, None]

    def cloud(self, channels: int, finest: int = 32) -> Tensor:
        """(B, channels, H, W): smooth noise of about unit variance, coarse or fine."""
        total, energy = 0.0, 0.0
        cells = 2
        while cells <= finest:
            weight = self.uniform()[:, None, None, None] ** 3 + 0.02
            grid = self.normal(channels, cells + 1, cells + 1)
            total = total + weight * F.interpolate(
                grid, size=(self.side, self.side), mode="bilinear", align_corners=True
            )
            energy = energy + 0.45 * weight**2
            cells *= 2
        return total / energy**0.5


def wide(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1)"""
    return values[:, None, None]


def mixed(below: Tensor, colour: Tensor, alpha: Tensor) -> Tensor:
    """(B, 3, H, W): a colour over a picture; alpha (B, H, W)."""
    return below + (colour - below) * alpha[:, None]


def ground(hand: Hand) -> Tensor:
    """(B, 3, H, W): plain, white, graded, landscapes, clouds, stripes, checks or dots."""
    kind = hand.choice(0.3, 0.15, 0.12, 0.2, 0.08, 0.06, 0.04, 0.05)
    cloud = hand.cloud(1)[:, 0]
    angle, frequency = wide(hand.uniform(0, math.tau)), wide(hand.uniform(2, 16))
    along = hand.x * angle.cos() + hand.y * angle.sin()
    across = hand.y * angle.cos() - hand.x * angle.sin()
    bend = 0.3 * wide(hand.uniform() ** 2) * cloud
    hard = wide(1 + 8 * hand.uniform())
    stripes = (torch.sin(frequency * (along + bend)) * hard * 0.5 + 0.5).clamp(0, 1)
    other = (torch.sin(frequency * (across + bend)) * hard * 0.5 + 0.5).clamp(0, 1)
    dots = ((frequency * along).sin() * (frequency * across).sin() - wide(hand.uniform(0, 0.7))) * 6
    hills = wide(hand.uniform(0, 0.15)) * cloud
    land = ((hand.y - wide(hand.uniform(-0.4, 0.8)) - hills) * hand.side / 3).clamp(0, 1)
    masks = torch.stack(
        [
            0 * cloud,
            0 * cloud,
            (0.5 + 0.5 * along).clamp(0, 1),
            land,
            (cloud * hard * 0.2 + 0.5).clamp(0, 1),
            stripes,
            stripes + other - 2 * stripes * other,
            dots.clamp(0, 1),
        ]
    )
    mask = masks.gather(0, kind[None, :, None, None].expand(1, *masks.shape[1:]))[0]
    first = hand.colour()
    near_white = (
        1 - 0.06 * hand.uniform(shape=(3,))[..., None, None] * wide(hand.uniform())[:, None]
    )
    first = torch.where((kind == 1)[:, None, None, None], near_white, first)
    image = mixed(first.expand(-1, -1, hand.side, hand.side), hand.colour(), mask)
    graded = (hand.y * 0.5 + 0.5) * wide(hand.uniform(0, 0.7) * ((kind == 3) & hand.chance(0.5)))
    image = mixed(image, hand.colour(), graded * (1 - mask))
    # Hills in front, or a second horizon.
    front = hand.y - wide(hand.uniform(0, 1)) - wide(hand.uniform(0, 0.2)) * hand.cloud(1, 8)[:, 0]
    front = (front * hand.side / 3).clamp(0, 1) * wide((kind == 3) & hand.chance(0.6))
    return mixed(image, hand.colour(), front)


def add_shape(hand: Hand, image: Tensor, x: Tensor, y: Tensor, visible: Tensor) -> Tensor:
    """The picture with one more shape in each: closed (round, polygon, star, blob) or a stroke.

    x, y (B, H, W): the coordinates, bent as an unsteady hand bends lines; visible (B,) bool.
    """
    angle = wide(hand.uniform(0, math.tau) * hand.chance(0.6))
    dx, dy = x - wide(hand.uniform(-1, 1)), y - wide(hand.uniform(-1, 1))
    u, v = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    radius = wide(0.06 + 0.6 * hand.uniform() ** 2)
    stretch = wide(torch.exp(0.5 * hand.normal()))
    corners = 3 + hand.choice(1, 2, 1, 1).float()
    kind = hand.choice(0.3, 0.3, 0.12, 0.28)

    # Closed shapes: the distance from the centre, over the outline's distance at that angle.
    distance, theta = torch.hypot(u * stretch, v / stretch), torch.atan2(v / stretch, u * stretch)
    sector = math.tau / wide(corners)
    polygon = (sector / 2).cos() / ((theta % sector) - sector / 2).cos()
    star = 1 + wide(hand.uniform(0.1, 0.5)) * torch.sin(theta * wide(corners + 2))
    wave = hand.normal(3)
    blob = sum(
        0.12 * wide(wave[:, k]) * torch.sin((k + 1) * theta + wide(hand.uniform(0, math.tau)))
        for k in range(3)
    )
    chosen = wide(kind)
    outline = torch.where(chosen == 1, polygon, torch.where(chosen == 2, star, 1 + blob))
    inside = radius * outline - distance  # (B, H, W): above 0 inside

    # Strokes: the distance from a wave of limited length.
    height, pace = wide(hand.uniform(0, 0.25)), wide(hand.uniform(0.5, 7))
    phase = wide(hand.uniform(0, math.tau))
    slope = height * pace * torch.cos(pace * u + phase)
    away = (v - height * torch.sin(pace * u + phase)).abs() / torch.sqrt(1 + slope**2)
    beyond = (u.abs() - wide(hand.uniform(0.2, 1.4))).clamp(min=0)
    stroke = wide(hand.uniform(0.015, 0.1)) - torch.hypot(away, beyond)

    is_stroke = chosen == 3
    inside = torch.where(is_stroke, stroke, inside)
    pixel = hand.side / 2
    width = wide(hand.uniform(0.02, 0.07))
    cover = (inside * pixel + 0.5).clamp(0, 1)
    line = cover * ((width - inside) * pixel + 0.5).clamp(0, 1)
    has_fill = wide(hand.chance(0.8)) | is_stroke
    has_line = wide(hand.chance(0.4)) & ~is_stroke | ~has_fill
    shade = (u + v)[:, None] * (hand.chance(0.25) * hand.uniform(0, 0.5))[:, None, None, None]
    colour = (hand.colour() + shade).clamp(0, 1)
    shown = wide(visible.float())
    opaque = wide(torch.where(hand.chance(0.85), 1.0, hand.uniform(0.3, 0.9)))
    image = mixed(image, colour, cover * has_fill * shown * opaque)
    dark = hand.colour() * hand.uniform(0, 1)[:, None, None, None]
    return mixed(image, dark, line * has_line * shown)


def add_shapes(hand: Hand, image: Tensor, count: Tensor) -> Tensor:
    """The picture with `count` (B,) more shapes."""
    if not bool((count > 0).any()):
        return image
    wobble = hand.cloud(2, 8) * hand.uniform(0, 0.03)[:, None, None, None]
    x, y = hand.x + wobble[:, 0], hand.y + wobble[:, 1]
    for i in range(LAYERS):
        image = add_shape(hand, image, x, y, count > i)
    return image


def placed(
    hand: Hand, rgba: Tensor, scale: Tensor, room: Tensor, turn: Tensor, wobble: Tensor
) -> Tensor:
    """Pictures (B, 4, S, S) uint8 -> (B, 4, H, W), moved; colours times transparency.

    scale, room, turn, wobble (B,): size, how far from the middle, radians, and how much it is bent.
    """
    rgba = rgba.float() / 255
    rgba = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    soft = F.avg_pool2d(rgba, 3, stride=1, padding=1, count_include_pad=False)
    rgba = torch.where((scale < 0.55)[:, None, None, None], soft, rgba)
    bend = hand.cloud(2, 8) * wobble[:, None, None, None]
    x = hand.x - wide(room * hand.uniform(-1, 1)) + bend[:, 0]
    y = hand.y - wide(room * hand.uniform(-1, 1)) + bend[:, 1]
    u = (x * wide(turn.cos()) + y * wide(turn.sin())) / wide(scale)
    v = (y * wide(turn.cos()) - x * wide(turn.sin())) / wide(scale)
    return F.grid_sample(rgba, torch.stack([u, v], dim=-1), align_corners=False)


def redrawn(hand: Hand, rgba: Tensor, detail: Tensor) -> Tensor:
    """(B, 4, H, W), colours times transparency -> the same as a rough drawing.

    It has a few flat colours, and often outlines; some drawings are only outlines. detail (B,):
    0 keeps nothing of the original's colours, 1 everything.
    """
    side, b = hand.side, hand.batch
    level = hand.choice(0.35, 0.4, 0.25)
    blurred = torch.stack(
        [
            F.interpolate(F.avg_pool2d(rgba, d), size=(side, side), mode="bilinear")
            for d in (2, 4, 8)
        ]
    )
    soft = blurred.gather(0, level[None, :, None, None, None].expand(1, *rgba.shape))[0]
    alpha = soft[:, 3]
    colour = soft[:, :3] / alpha[:, None].clamp(min=0.05)

    # The palette: colours of random places of the subject, then two rounds of k-means.
    coarse = F.avg_pool2d(torch.cat([colour * alpha[:, None], alpha[:, None]], 1), 4)
    weight = coarse[:, 3].flatten(1) + 1e-4  # (B, P)
    points = (coarse[:, :3] / coarse[:, 3:].clamp(min=0.05)).flatten(2).clamp(0, 1)  # (B, 3, P)
    pick = torch.multinomial(weight, COLOURS, generator=hand.generator)
    palette = points.gather(2, pick[:, None].expand(-1, 3, -1))  # (B, 3, COLOURS)
    unused = torch.arange(COLOURS, device=hand.device) >= (2 + hand.choice(1, 2, 2, 1, 1))[:, None]
    for _ in range(2):
        away = (points[..., None] - palette[:, :, None]).square().sum(1)  # (B, P, COLOURS)
        away = away + 100.0 * unused[:, None]
        nearest = F.one_hot(away.argmin(-1), COLOURS) * weight[..., None]
        sums = torch.einsum("bcp,bpk->bck", points, nearest)
        mass = nearest.sum(1)[:, None]
        palette = torch.where(mass > 0.01, sums / mass.clamp(min=0.01), palette)
    away = (
        (colour[..., None, :, :] - palette[..., None, None]).square().sum(1)
    )  # (B, COLOURS, H, W)
    label = (away + 100.0 * unused[..., None, None]).argmin(1)  # (B, H, W)
    grey = palette.mean(1, keepdim=True)
    jitter = 0.06 * torch.randn(palette.shape, generator=hand.generator, device=hand.device)
    palette = grey + (palette - grey) * hand.uniform(0.7, 1.5)[:, None, None] + jitter
    flat = palette.clamp(0, 1).gather(2, label.flatten(1)[:, None].expand(-1, 3, -1))
    flat = flat.view(b, 3, side, side)

    shape = ((alpha - 0.45) * 6 + 0.5).clamp(0, 1)
    drawn = torch.lerp(flat, colour.clamp(0, 1), detail[:, None, None, None])
    crayon = 0.12 * hand.uniform() * hand.chance(0.4)
    drawn = (drawn + crayon[:, None, None, None] * hand.normal(1, side, side)).clamp(0, 1)
    gaps = (hand.cloud(1)[:, 0] * 3 + wide(hand.uniform(2, 5))).clamp(0, 1)
    shape = shape * torch.where(wide(hand.chance(0.12)), gaps, 1.0)

    solid = (alpha > 0.45).float()
    marks = torch.where(solid > 0, label + 1, 0)
    inner = torch.zeros_like(solid)
    inner[:, :, 1:] += (marks[:, :, 1:] != marks[:, :, :-1]).float()
    inner[:, 1:] += (marks[:, 1:] != marks[:, :-1]).float()
    inner = inner.clamp(max=1)[:, None]
    outer = F.max_pool2d(solid[:, None], 3, 1, 1) - solid[:, None]
    edge = torch.where(hand.chance(0.5)[:, None, None, None], torch.maximum(inner, outer), outer)
    lines = torch.stack([F.max_pool2d(edge, k, 1, k // 2) for k in (3, 5, 7)])[:, :, 0]
    lines = lines.gather(0, hand.choice(0.5, 0.4, 0.1)[None, :, None, None].expand_as(lines))[0]
    empty = wide(hand.chance(0.1))
    lines = lines * (wide(hand.chance(0.45)) | empty)
    ink = hand.colour() * 0.5 * hand.uniform()[:, None, None, None]
    shape = torch.where(empty, 0.0, shape)
    out = mixed(drawn * shape[:, None], ink, lines)
    return torch.cat([out, torch.maximum(shape, lines)[:, None]], dim=1)


def halved(image: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1 -> uint8 (B, 3, S, S)."""
    return (F.avg_pool2d(image.clamp(0, 1), OVERSAMPLED) * 255).round().to(torch.uint8)


def line_drawing(hand: Hand, image: Tensor) -> Tensor:
    """The picture's edges as ink on paper."""
    down = F.pad((image[:, :, 1:] - image[:, :, :-1]).abs().amax(1), (0, 0, 0, 1))
    right = F.pad((image[..., 1:] - image[..., :-1]).abs().amax(1), (0, 1))
    line = F.max_pool2d(torch.maximum(down, right)[:, None], 3, 1, 1)[:, 0]
    line = (line * wide(hand.uniform(2, 8))).clamp(0, 1)
    paper = torch.where(
        hand.chance(0.6)[:, None, None, None], torch.ones(()).to(image), hand.colour()
    )
    ink = hand.colour() * hand.uniform(0, 0.8)[:, None, None, None]
    return mixed(paper.expand_as(image), ink, line)


@torch.no_grad()
def anything(rgba: Tensor, which: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 (B, 3, S, S): a picture of anything for each of the indices `which` (B,).

    rgba (N, 4, S, S) uint8: emoji that may be pasted; picture i may show the emoji `which[i]`.
    """
    hand = Hand(len(which), rgba.shape[-1], generator)
    image = ground(hand)
    kind = hand.choice(0.35, 0.15, 0.5)  # shapes, little more than a ground, a collage
    few, many = hand.uniform(0, 3), hand.uniform(2, LAYERS + 1)
    fewer = few * hand.chance(0.5)
    count = torch.where(kind == 0, many, torch.where(kind == 1, few, fewer))
    image = add_shapes(hand, image, count.floor())
    pasted = torch.where(
        hand.chance(0.55), torch.ones_like(few), hand.uniform(1, PASTED + 1).floor()
    )
    pasted = pasted * (kind == 2)
    is_crop = hand.chance(0.2)
    for i in range(PASTED):
        other = torch.randint(len(rgba), which.shape, generator=generator, device=which.device)
        alone = hand.uniform(0.5, 1.05)
        scale = torch.where(pasted > 1, hand.uniform(0.2, 0.7), alone)
        scale = torch.where(is_crop, hand.uniform(1.1, 3.0), scale)
        room = torch.where(is_crop, scale * 0.7, (1.15 - scale).clamp(min=0.05))
        turn = hand.normal() * 0.5 * hand.chance(0.4)
        bend = 0.05 * hand.uniform() * hand.chance(0.3)
        layer = placed(hand, rgba[which if i == 0 else other], scale, room, turn, bend)
        rough = redrawn(hand, layer, hand.uniform())
        layer = torch.where(hand.chance(0.35)[:, None, None, None], rough, layer)
        layer = layer * (pasted > i)[:, None, None, None]
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    image = torch.where(hand.chance(0.08)[:, None, None, None], line_drawing(hand, image), image)
    grey = image.mean(1, keepdim=True).expand_as(image)
    image = torch.where(hand.chance(0.06)[:, None, None, None], grey, image)
    image = torch.where(hand.chance(0.06)[:, None, None, None], 1 - image, image)
    order = torch.argsort(hand.uniform(shape=(3,)), dim=1)[:, :, None, None]
    swapped = image.gather(1, order.expand_as(image))
    image = torch.where(hand.chance(0.2)[:, None, None, None], swapped, image)
    grain = 0.06 * hand.uniform() * hand.chance(0.15)
    return halved(image + grain[:, None, None, None] * hand.normal(3, hand.side, hand.side))


@torch.no_grad()
def drawings_of(
    rgba: Tensor, second: Tensor, has_second: Tensor, generator: torch.Generator
) -> Tensor:
    """uint8 (B, 3, S, S): rough drawings of the subjects, each on a ground of its own.

    rgba, second (B, 4, S, S) uint8: the subjects; has_second (B,) bool: whether both are drawn.
    """
    hand = Hand(len(rgba), rgba.shape[-1], generator)
    white = torch.ones(1, device=hand.device)
    image = torch.where(hand.chance(0.3)[:, None, None, None], white, ground(hand))
    image = add_shapes(hand, image, (hand.uniform(0, 4) * hand.chance(0.2)).floor())
    # Half have none of the original's detail, the others any amount.
    detail = hand.uniform() * hand.chance(0.5)
    side = torch.where(hand.chance(0.5), 1.0, -1.0) * 0.46 * has_second
    for i, subject in enumerate((second, rgba)):
        scale = torch.where(has_second, hand.uniform(0.38, 0.55), hand.uniform(0.45, 1.05))
        room = torch.where(
            has_second, 0.08 * torch.ones_like(scale), (1.05 - scale).clamp(min=0.05)
        )
        turn, bend = 0.15 * hand.normal(), 0.045 * hand.uniform() * (1 - detail)
        layer = placed(hand, subject, scale, room, turn, bend)
        layer = redrawn(hand, layer, detail)
        shift = (side if i else -side) * hand.side / 2
        layer = shifted(layer, shift)
        layer = layer if i else layer * has_second[:, None, None, None]
        image = image * (1 - layer[:, 3:]) + layer[:, :3]
    return halved(image)


def shifted(layer: Tensor, pixels: Tensor) -> Tensor:
    """The layer (B, C, H, W), moved to the right by `pixels` (B,). What leaves it is lost."""
    places = torch.arange(layer.shape[-1], device=layer.device) - pixels[:, None].round().long()
    inside = ((places >= 0) & (places < layer.shape[-1]))[:, None, None]
    index = places.clamp(0, layer.shape[-1] - 1)[:, None, None].expand_as(layer)
    return layer.gather(3, index) * inside
