"""Where two runs separate.

Any two traces whose latents have the same size can be compared: 29 and 30 steps, two seeds, float32
and bfloat16, another program's. They are compared at the same noise level, not at the same step.
The levels are each sigma of either run, in the range that both cover. Between a run's own steps, x
and x0 are interpolated linearly in sigma. (A step of Euler or DDIM moves along exactly that line.)

The distance is the root mean square of the difference over all elements. In SD 1.x a latent has
variance 1, so two unrelated pictures are about 1.4 apart in x0, and 0.1 is a tenth of a latent's
spread. In the bundled weights it has variance 4.

They separate at the first sigma from which the distance of x stays above the threshold to the end.
The threshold is a fixed distance, not a share of the final one, so that it means the same for all
pairs. The default of 0.1 is about as much as the autoencoder itself changes. A latent of the
bundled weights that is moved by 0.1 decodes to a picture 3 to 6 levels of 255 away (root mean
square). Encoding and decoding a picture of theirs moves it by 1 to 5 levels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minisd.observe.trace import Trace

THRESHOLD = 0.1
# Settings that say nothing of the run. "asked" is of older versions, where it repeats "steps".
HIDDEN = ("latent_rgb", "latent_rgb_bias", "asked", "environment", "line")


@dataclass(frozen=True)
class Growth:
    """How far two runs are apart, at matching sigmas from high to low."""

    sigma: list[float]
    x: list[float]
    x0: list[float]  # empty if one of the traces has no eps
    latent: float | None  # the distance of the final latents
    pixels: float | None  # of the decoded pictures, in levels of 255
    threshold: float
    split: int | None  # index of the sigma where they separate; None: they do not
    is_equal: bool = False  # whether all that both recorded is equal to the last bit

    @property
    def split_sigma(self) -> float | None:
        return None if self.split is None else self.sigma[self.split]


def compare(a: Trace, b: Trace, threshold: float = THRESHOLD) -> Growth:
    """Raises ValueError if the two cannot be compared."""
    for name, trace in (("first", a), ("second", b)):
        if not trace.steps:
            raise ValueError(f"the {name} trace has no step to compare")
    if a.x[0].shape != b.x[0].shape:
        sizes = f"{tuple(a.x[0].shape)} and {tuple(b.x[0].shape)}"
        raise ValueError(f"the latents have different sizes, {sizes}")
    low = max(min(a.sigma), min(b.sigma))
    high = min(max(a.sigma), max(b.sigma))
    sigmas = distinct(sigma for sigma in a.sigma + b.sigma if low <= sigma <= high)
    if not sigmas:
        raise ValueError("the two runs have no noise level in common")

    def distances(of_a: Sequence[Tensor | None], of_b: Sequence[Tensor | None]) -> list[float]:
        tensors_a, tensors_b = ([y for y in values if y is not None] for values in (of_a, of_b))
        if len(tensors_a) < len(of_a) or len(tensors_b) < len(of_b):
            return []
        return [
            rms(interpolated(tensors_a, a.sigma, s) - interpolated(tensors_b, b.sigma, s))
            for s in sigmas
        ]

    x = distances(a.x, b.x)
    above = [distance > threshold for distance in x]
    split = next((i for i in range(len(above)) if all(above[i:])), None)
    latent, pixels = None, None
    if a.latent is not None and b.latent is not None:
        latent = rms(a.latent - b.latent)
    if a.image is not None and b.image is not None and a.image.shape == b.image.shape:
        pixels = rms(a.image.clamp(-1, 1) - b.image.clamp(-1, 1)) * 255 / 2
    x0, is_equal = distances(a.x0, b.x0), bit_equal(a, b)
    return Growth(sigmas, x, x0, latent, pixels, threshold, split, is_equal)


def bit_equal(a: Trace, b: Trace) -> bool:
    """Whether the levels and all tensors that both traces hold are equal to the last bit."""
    if a.sigma != b.sigma or (a.latent is None) != (b.latent is None):
        return False
    pairs = [*zip(a.x, b.x), *zip(a.eps, b.eps), (a.latent, b.latent), (a.image, b.image)]
    both = [(y.cpu(), z.cpu()) for y, z in pairs if y is not None and z is not None]
    return all(y.dtype == z.dtype and torch.equal(y, z) for y, z in both)


def distinct(sigmas: Iterable[float]) -> list[float]:
    """Descending, each once. Levels that differ by rounding only count as one."""
    kept: list[float] = []
    for sigma in sorted(sigmas, reverse=True):
        if not kept or kept[-1] - sigma > 1e-5 * sigma:
            kept.append(sigma)
    return kept


def interpolated(tensors: list[Tensor], sigmas: list[float], sigma: float) -> Tensor:
    """The value at this sigma of a tensor that is known at `sigmas`, which descend."""
    place = float(np.interp(-sigma, [-s for s in sigmas], range(len(sigmas))))
    before = min(int(place), max(0, len(tensors) - 2))
    weight = place - before
    if weight == 0:
        return tensors[before].float().cpu()
    after = tensors[before + 1].float().cpu()
    return (1 - weight) * tensors[before].float().cpu() + weight * after


def rms(difference: Tensor) -> float:
    return float((difference.double() ** 2).mean() ** 0.5)


# ---- as text -------------------------------------------------------------------------------------


def names_of(a: Trace, b: Trace) -> tuple[str, str]:
    """Up to three settings in which the two differ, in words."""
    keys = [
        key for key in {**a.settings, **b.settings} if a.settings.get(key) != b.settings.get(key)
    ]
    keys = [key for key in keys if key not in HIDDEN][:3]
    words = [", ".join(f"{key} {t.settings.get(key, '?')}" for key in keys) for t in (a, b)]
    return words[0] or "A", words[1] or "B"


def differing_settings(a: Trace, b: Trace) -> list[str]:
    """`steps: 29 and 30`, for each setting that differs, and for each part of `environment`."""
    rows = []
    for label, of_a, of_b in (
        ("", a.settings, b.settings),
        ("environment, ", environment_of(a), environment_of(b)),
    ):
        for key in {**of_a, **of_b}:
            if key not in HIDDEN and of_a.get(key) != of_b.get(key):
                values = " and ".join(
                    f"{side.get(key, 'not recorded')}"[:60] for side in (of_a, of_b)
                )
                rows.append(f"{label}{key}: {values}")
    return rows


def environment_of(trace: Trace) -> dict[str, Any]:
    stored = trace.settings.get("environment")
    return stored if isinstance(stored, dict) else {}


def number(distance: float) -> str:
    """0.1234, or 9.0e-06 where four places would show nothing, or 0."""
    return f"{distance:.4f}" if distance >= 0.0005 else f"{distance:.1e}" if distance else "0"


def report(growth: Growth, a: Trace, b: Trace, names: tuple[str, str]) -> str:
    """The comparison as text: a line for each sigma, and the conclusion."""
    lines = [
        f"A: {names[0]}, {a.n_steps} steps from sigma {a.sigma[0]:.4f}",
        f"B: {names[1]}, {b.n_steps} steps from sigma {b.sigma[0]:.4f}",
        "",
        "     sigma   A step   B step   distance of x   of x0",
    ]
    for i, sigma in enumerate(growth.sigma):
        x0 = f"{number(growth.x0[i]):>9}" if growth.x0 else "        -"
        mark = "  <- separate from here" if i == growth.split else ""
        steps = f"{step_number(a, sigma):8} {step_number(b, sigma):8}"
        lines.append(f"{sigma:10.4f} {steps} {number(growth.x[i]):>14}{x0}{mark}")
    lines.append("")
    lines += [f"they differ in {row}" for row in differing_settings(a, b)]
    if growth.latent is not None:
        pixels = ""
        if growth.pixels is not None:
            pixels = f", the pictures {growth.pixels:.1f} of 255 levels"
        lines.append(
            f"the final latents are {number(growth.latent)} apart{pixels} (root mean square)"
        )
    lines.append(conclusion(growth, a, b))
    return "\n".join(lines)


def conclusion(growth: Growth, a: Trace, b: Trace) -> str:
    if growth.is_equal:
        return "they are bit-equal: x, eps, the latent and the picture, as far as both have them"
    if growth.split_sigma is None:
        return f"they do not separate: x does not stay more than {growth.threshold:g} apart"
    sigma = growth.split_sigma
    steps = f"step {step_number(a, sigma)} of A and {step_number(b, sigma)} of B"
    return f"they separate at sigma {sigma:.3f}, {steps}: x stays over {growth.threshold:g} apart"


def step_number(trace: Trace, sigma: float) -> int:
    """The number, from 1, of the step that starts at this sigma, or of the first one below it."""
    steps = [step for step in trace.steps if step.sigma <= sigma * (1 + 1e-5)]
    return (steps or trace.steps[-1:])[0].i + 1
