"""`minisd diff A B`: where two runs part.

A and B are traces (`minisd strip --traces FOLDER` keeps them, `save_trace` writes them), of any two
runs whose latents are of one size: 29 and 30 steps, two seeds, float32 and bfloat16, another
program's. They are compared at the same noise level, not at the same step: at each sigma that
either run visits, in the range that both cover, x and x0 of the other are interpolated linearly in
sigma between its steps. (Along a step, Euler and DDIM move on just that line.)

The distance is the root mean square of the difference over all elements. A latent has variance 1,
so two different pictures are about 1.4 apart in x0, and 0.1 is a tenth of its spread.

They separate at the first sigma from which the distance of x stays above the threshold to the end.
It is 0.1 by default, and not some share of the final distance, so that it means the same for all
pairs: moved by so much, a latent of the bundled weights decodes to a picture that is 7 to 12 levels
of 255 away (root mean square), about as far as encoding and decoding moves an emoji by itself (5 to
19 levels). Below that two pictures are one and the same to this autoencoder.
"""

import argparse
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from minisd.trace.sheet import PALE, column, plot, row, written
from minisd.trace.strips import GAP, result, saved, strip

if TYPE_CHECKING:
    from torch import Tensor

    from minisd.trace.trace import Trace

THRESHOLD = 0.1


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a trace (.safetensors)")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, metavar="X",
        help=f"distance of x0 from which on they count as separate ({THRESHOLD})")  # fmt: skip
    parser.add_argument("--rows", default="x0", metavar="ROW,...",
        help="which tiles: x, seen, x0, eps (x0)")  # fmt: skip
    parser.add_argument("--tile", type=int, default=48, metavar="PX", help="size of a tile (48)")
    parser.add_argument("--to", metavar="FILE", help="write the sheet there (a new file in -o)")
    parser.add_argument("-o", "--outdir", default="outputs/img-samples", metavar="FOLDER",
        help="where the sheet goes (outputs/img-samples)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from minisd.trace.trace import load_trace

    a, b = load_trace(args.a), load_trace(args.b)
    growth = compare(a, b, args.threshold)
    names = names_of(a, b)
    print(told(growth, a, b, names))
    rows = [name for name in args.rows.split(",") if name != "decode"]
    print(saved(diff_sheet(growth, a, b, names, rows, args.tile), args, "diff.png"))
    return 0


@dataclass(frozen=True)
class Growth:
    """The distances at matching sigmas, from high to low."""

    sigma: list[float]
    x: list[float]
    x0: list[float]  # empty where one of the traces has no eps
    end: float | None  # of the final latents
    pixels: float | None  # of the decoded pictures, in levels of 255
    threshold: float
    parted: int | None  # index of the sigma from which on they are separate

    @property
    def parted_at(self) -> float | None:
        return None if self.parted is None else self.sigma[self.parted]


def compare(a: "Trace", b: "Trace", threshold: float = THRESHOLD) -> Growth:
    """Raises ValueError where the two cannot be compared."""
    for name, trace in (("first", a), ("second", b)):
        if not trace.steps:
            raise ValueError(f"the {name} trace has no step to compare")
    if a.x[0].shape != b.x[0].shape:
        sizes = f"{tuple(a.x[0].shape)} and {tuple(b.x[0].shape)}"
        raise ValueError(f"the latents are of different sizes, {sizes}")
    low = max(min(a.sigma), min(b.sigma))
    high = min(max(a.sigma), max(b.sigma))
    sigmas = distinct(sigma for sigma in a.sigma + b.sigma if low <= sigma <= high)
    if not sigmas:
        raise ValueError("the two runs have no noise level in common")
    x = [rms(at(a, a.x, s) - at(b, b.x, s)) for s in sigmas]
    x0: list[float] = []
    if None not in a.eps + b.eps:
        a_x0, b_x0 = a.x0, b.x0
        x0 = [rms(at(a, a_x0, s) - at(b, b_x0, s)) for s in sigmas]
    above = [value > threshold for value in x]
    parted = next((i for i in range(len(above)) if all(above[i:])), None)
    end = None if a.latent is None or b.latent is None else rms(a.latent - b.latent)
    pixels = None
    if a.image is not None and b.image is not None and a.image.shape == b.image.shape:
        pixels = rms(a.image.clamp(-1, 1) - b.image.clamp(-1, 1)) * 255 / 2
    return Growth(sigmas, x, x0, end, pixels, threshold, parted)


def distinct(sigmas) -> list[float]:
    """Descending; two that differ by rounding alone are one."""
    kept: list[float] = []
    for sigma in sorted(sigmas, reverse=True):
        if not kept or kept[-1] - sigma > 1e-5 * sigma:
            kept.append(sigma)
    return kept


def at(trace: "Trace", values: list["Tensor"], sigma: float) -> "Tensor":
    """A list of the trace's at this sigma, linear between its steps."""
    down = [-s for s in trace.sigma]  # ascending
    j = min(max(bisect_left(down, -sigma), 1), len(down) - 1) if len(down) > 1 else 0
    if j == 0:
        return values[0]
    before, after = trace.sigma[j - 1], trace.sigma[j]
    w = min(1.0, max(0.0, (before - sigma) / (before - after)))
    return (1 - w) * values[j - 1].float().cpu() + w * values[j].float().cpu()


def rms(difference: "Tensor") -> float:
    return float((difference.double() ** 2).mean() ** 0.5)


def step_at(trace: "Trace", sigma: float) -> int:
    """The number, from 1, of the step that starts at this sigma or is the first below it."""
    steps = [s for s in trace.steps if s.sigma <= sigma * (1 + 1e-5)]
    return (steps or trace.steps[-1:])[0].i + 1


def names_of(a: "Trace", b: "Trace") -> tuple[str, str]:
    """What tells the two apart in their settings, in words."""
    keys = [
        key for key in {**a.settings, **b.settings} if a.settings.get(key) != b.settings.get(key)
    ]
    keys = [key for key in keys if key not in ("latent_rgb", "latent_rgb_bias", "asked")][:3]
    words = [", ".join(f"{key} {t.settings.get(key, '?')}" for key in keys) for t in (a, b)]
    return words[0] or "A", words[1] or "B"


def told(growth: Growth, a: "Trace", b: "Trace", names: tuple[str, str]) -> str:
    """The comparison as text: a line for each matching sigma, and the answer."""
    said = [
        f"A: {names[0]}, {a.n_steps} steps from sigma {a.sigma[0]:.4f}",
        f"B: {names[1]}, {b.n_steps} steps from sigma {b.sigma[0]:.4f}",
        "",
        "     sigma   A step   B step   distance of x   of x0",
    ]
    for i, sigma in enumerate(growth.sigma):
        x0 = f"{growth.x0[i]:8.4f}" if growth.x0 else "       -"
        mark = "  <- separate from here" if i == growth.parted else ""
        at_a, at_b = step_at(a, sigma), step_at(b, sigma)
        said.append(f"{sigma:10.4f} {at_a:8} {at_b:8} {growth.x[i]:15.4f}{x0}{mark}")
    said.append("")
    if growth.end is not None:
        pixels = (
            "" if growth.pixels is None else f", the pictures {growth.pixels:.1f} of 255 levels"
        )
        said.append(f"the final latents are {growth.end:.4f} apart{pixels} (root mean square)")
    said.append(answer(growth, a, b))
    return "\n".join(said)


def answer(growth: Growth, a: "Trace", b: "Trace") -> str:
    if growth.parted is None:
        return f"they do not separate: x does not stay more than {growth.threshold:g} apart"
    sigma = growth.sigma[growth.parted]
    steps = f"step {step_at(a, sigma)} of A and {step_at(b, sigma)} of B"
    return f"they separate at sigma {sigma:.3f}, {steps}: x stays over {growth.threshold:g} apart"


# ---- the drawing -------------------------------------------------------------------------------


def diff_sheet(
    growth: Growth, a: "Trace", b: "Trace", names: tuple[str, str], rows: list[str], tile: int
) -> Image.Image:
    """Both runs' strips, one above the other, and below, in line with A's tiles, the distances."""
    if not growth.x0:
        rows = ["x"]
    strips = {
        name: [strip(t, name, tile, t.n_steps) for t in (a, b)] for name in dict.fromkeys(rows)
    }
    width = max(image.width for pair in strips.values() for image in pair)
    big = max(tile, 2 * tile * len(rows) // 2)
    lines = []
    for k, (letter, trace) in enumerate((("A", a), ("B", b))):
        lines.append(written(f"{letter}: {names[k]} ({trace.n_steps} steps run)", 13))
        tiles = column([right_aligned(pair[k], width) for pair in strips.values()], gap=GAP)
        picture = result(trace, max(tiles.height, big))
        lines.append(row([tiles, picture], gap=10) if picture else tiles)
    per_tile = (strips[rows[0]][0].width + GAP) / max(1, len(a.steps))
    start = width - len(a.steps) * per_tile + per_tile / 2  # the middle of A's first tile

    def across(sigma: float) -> float:
        """A sigma's place on the sheet: that of A's tile, or in between."""
        down = [-s for s in a.sigma]
        j = min(max(bisect_left(down, -sigma), 1), len(down) - 1) if len(down) > 1 else 0
        if j == 0:
            return start
        w = (a.sigma[j - 1] - sigma) / (a.sigma[j - 1] - a.sigma[j])
        return start + (j - 1 + w) * per_tile

    places = [across(sigma) for sigma in growth.sigma]
    curves = [("distance of x", places, growth.x)]
    if growth.x0:
        curves.append(("distance of x0, what the network believes", places, growth.x0))
    every = max(1, round(44 / per_tile + 0.49))
    sigma_ticks = [(across(s), f"{s:.2f}") for s in a.sigma[::every]]
    margin = 44
    chart = plot(
        curves,
        size=(width + margin + 10, 230),
        x_label="sigma, at A's tiles",
        x_ticks=sigma_ticks,
        x_range=(0, width),
        margins=(margin, 10),
        levels=[(growth.threshold, "separate above this")],
    )
    shifted = [shift(line, margin) for line in lines]
    foot = shift(written(answer(growth, a, b), 12, PALE), margin)
    return column([*shifted, chart, foot], gap=6, margin=10)


def shift(image: Image.Image, right: int) -> Image.Image:
    return row([Image.new("RGB", (right, 1), "white"), image], gap=0)


def right_aligned(image: Image.Image, width: int) -> Image.Image:
    return shift(image, width - image.width) if image.width < width else image
