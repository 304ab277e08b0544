"""Noise levels, and the schedules (lists of noise levels) that a sampler goes down.

A latent on its way is `x = x0 + sigma * noise`. The noise level sigma is the standard deviation of
the noise, in units of the clean latent's own. The papers measure the same thing as abar, the share
of the variance that is still picture: `abar = 1 / (sigma^2 + 1)`. The network was trained on 1000
levels, from t = 0 (almost clean) to t = 999 (almost pure noise).
"""

import math
from collections.abc import Callable
from itertools import pairwise
from numbers import Integral

import numpy as np

Schedule = Callable[[int], list[float]]

# SD 1.x's training schedule, linear in sqrt(beta). CompVis: make_beta_schedule, with the numbers of
# configs/stable-diffusion/v1-inference.yaml. In float64: float32 is off by 1e-5 at t = 0.
BETAS = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2  # (1000,)
ABAR = np.cumprod(1 - BETAS)  # (1000,)  0.9991 ... 0.0047
SIGMAS = np.sqrt((1 - ABAR) / ABAR)  # (1000,)  0.0292 ... 14.6146
LOG_SIGMAS = np.log(SIGMAS)


def t_to_sigma(t: float) -> float:
    """Noise level at timestep t in 0..999; linear in log sigma between two, as in k-diffusion."""
    return math.exp(np.interp(t, np.arange(1000), LOG_SIGMAS))


def sigma_to_t(sigma: float) -> float:
    """The timestep, usually fractional, at which the network expects this sigma; within 0..999."""
    return float(np.interp(math.log(max(sigma, SIGMAS[0])), LOG_SIGMAS, np.arange(1000)))


def model(steps: int) -> list[float]:
    """Sigmas at `steps` timesteps, evenly from 999 to 0 (14.61 to 0.0292), then 0.

    k-diffusion: DiscreteSchedule.get_sigmas.
    """
    return [t_to_sigma(t) for t in np.linspace(999, 0, check_steps(steps))] + [0.0]


def karras(steps: int, rho: float = 7.0) -> list[float]:
    """Sigmas evenly spaced in sigma^(1/rho) from 14.61 to 0.0292, then 0.

    Karras et al. 2022, equation 5.
    """
    high, low = SIGMAS[-1] ** (1 / rho), SIGMAS[0] ** (1 / rho)
    return [float(s) ** rho for s in np.linspace(high, low, check_steps(steps))] + [0.0]


def ddim(steps: int) -> list[float]:
    """Sigmas at t = 1 + floor(i * 1000 / steps), highest first, then that of t = 0: 0.0292, not 0.

    CompVis's rule, which rounds 1000 / steps first, is `ddim_original`. Some of its schedules start
    far below the noisiest levels. Counts that divide 1000 give the same levels.
    """
    if check_steps(steps) > 999:
        raise ValueError(f"the ddim schedule can have 1 to 999 steps, not {steps}")
    timesteps = [1 + i * 1000 // steps for i in reversed(range(steps))]
    return [float(SIGMAS[t]) for t in [*timesteps, 0]]


SCHEDULES: dict[str, Schedule] = {"model": model, "karras": karras, "ddim": ddim}


def default_schedule(sampler: object) -> str:
    """The name of the schedule that a sampler uses if none is chosen."""
    return "ddim" if sampler == "ddim" else "model"


def start_index(steps: int, strength: float) -> int:
    """How many of `steps` steps img2img skips; it runs the other floor(steps * strength).

    Strength 0 runs none, 1 runs all. The product is rounded first, because 0.58 * 50 is 28.99...
    """
    if not 0 <= strength <= 1:
        limits = "between 0 (keep the image) and 1 (ignore it)"
        raise ValueError(f"strength must be {limits}, not {strength}")
    return check_steps(steps) - math.floor(round(steps * strength, 9))


def check_steps(steps: int) -> int:
    if isinstance(steps, Integral) and steps >= 1:
        return steps
    raise ValueError(f"steps must be a whole number, 1 or more, not {steps!r}")


def levels_of(schedule: Schedule, steps: int) -> list[float]:
    """Its steps + 1 levels as floats. Raises ValueError for levels that no run can use."""
    sigmas = schedule(check_steps(steps))
    try:
        levels = [float(sigma) for sigma in sigmas]
    except (TypeError, ValueError, RuntimeError):  # numpy and torch raise different ones
        text = " ".join(f"{sigmas!r}".split())
        raise ValueError(f"a schedule must return a list of numbers, not {text:.60}") from None
    if len(levels) != steps + 1:
        raise ValueError(f"{steps} steps need {steps + 1} noise levels, not {len(levels)}")
    for a, b in pairwise(levels):
        if not math.inf > a > b >= 0:
            raise ValueError(f"noise levels must fall, to 0 or above, but {b:g} follows {a:g}")
    return levels
