"""The exercises of lesson 5: where the steps go."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from minisd.lab.subject import HIGH, LOW, MIXTURE, latent
from minisd.lessons import checks
from minisd.lessons.checks import Exercise, which
from minisd.samplers import k_euler
from minisd.schedule import karras, model


def karras_levels(steps: int, rho: float) -> list[float]:
    return karras(steps, rho)


def spaced(steps: int, rho: float, low: float = LOW) -> list[float]:
    """Karras's levels without the power at the end, and without 0."""
    high = HIGH ** (1 / rho)
    return [high + i / max(1, steps - 1) * (low ** (1 / rho) - high) for i in range(steps)]


KARRAS = Exercise(
    karras_levels,
    [
        (
            "the last level, 0, is missing: n steps need n + 1 levels",
            lambda n, r: karras(n, r)[:-1],
        ),
        (
            "the spacing takes all n + 1 levels. It has n levels, and then comes 0",
            lambda n, r: karras(n + 1, r)[:-1],
        ),
        ("the levels rise: a sampler goes down", lambda n, r: karras(n, r)[::-1]),
        ("the levels are even in sigma itself: rho is not used", lambda n, r: karras(n, 1.0)),
        (
            "the levels are still sigma^(1/rho): raise them to the power rho",
            lambda n, r: [*spaced(n, r), 0.0],
        ),
        (
            "there is one level too many: n levels above 0, and then 0",
            lambda n, r: karras(n + 1, r),
        ),
        (
            "0 is part of the spacing. The spacing ends at 0.0292, and 0 comes after it",
            lambda n, r: [s**r for s in spaced(n + 1, r, 0.0)],
        ),
        (
            "rho has the place of 1/rho: take the root first, and the power last",
            lambda n, r: karras(n, 1 / r),
        ),
    ],
    "equation 5 of Karras's paper, and then 0",
    [{"steps": steps, "rho": rho} for steps, rho in ((5, 7.0), (10, 7.0), (8, 3.0))],
    tolerance=1e-4,
)  # fmt: skip


def error(sigmas: list[float]) -> float:
    """Of Euler's method on the exact mixture, at the end (root mean square)."""
    x = latent(HIGH)
    *_, last = k_euler(MIXTURE, x, sigmas)
    return float((last.x_next - MIXTURE.flow(x, HIGH, 0.0)).square().mean() ** 0.5)


def judge_schedule(answer: Callable[[int], Any]) -> str | None:
    sigmas = answer(8)
    if not isinstance(sigmas, list | tuple) and not hasattr(sigmas, "tolist"):
        return f"a schedule is a list of numbers, not {checks.short(sigmas)}"
    sigmas = [float(sigma) for sigma in sigmas]
    if len(sigmas) != 9:
        return f"8 steps need 9 levels, not {len(sigmas)}"
    if any(a <= b for a, b in pairwise(sigmas)):
        return "the levels must fall from each one to the next"
    if abs(sigmas[0] / HIGH - 1) > 0.01:
        return f"the first level is {sigmas[0]:.4g}, but pure noise has 14.6146"
    if sigmas[-1] != 0:
        return f"the last level is {sigmas[-1]:.4g}: this noise stays in the picture. End at 0"
    if sigmas[-2] < 0.99 * LOW:
        return f"the network was trained down to 0.0292, not to {sigmas[-2]:.4g}"
    own, models = error(sigmas), error(model(8))
    if own >= models:
        return f"its error is {own:.4f}, and that of the schedule model is {models:.4f}"
    return None


BETTER = Exercise(
    None,
    [],
    "its error on the exact model is smaller than that of the schedule model",
    [{"steps": 8}],
    diagnose=judge_schedule,
)

ENDS = Exercise(
    ("C", 0.0413),
    [
        ("B ends at the lowest level of the training, as DDIM's own program does", ("B", 0.0292)),
        ("that is B's last level. C ends higher", ("C", 0.0292)),
        ("C's result still holds noise: read the last level in its line", ("C", 0.0)),
    ],
    "C leaves out the last step, and decodes a latent that holds noise of sigma 0.0413. "
    "AUTOMATIC1111's DDIM and PLMS do this since version 1.6: 20 steps are 19 calls of the network",
    diagnose=which("C", "read the last level in C's line, with four decimals"),
    tolerance=2e-4,
)

EXERCISES = {
    "karras_levels": KARRAS,
    "better": BETTER,
    "ends": ENDS,
}
