"""Noise levels, and the schedules (lists of noise levels) that a sampler goes down.

A latent on its way is `x = x0 + sigma * noise`. The noise level sigma is the standard deviation of
the noise, in units of the clean latent's own. The papers measure the same thing as abar, the share
of the variance that is still picture: `abar = 1 / (sigma^2 + 1)`. The network was trained on 1000
levels, from t = 0 (almost clean) to t = 999 (almost pure noise).
"""

import math
import operator
from collections.abc import Callable

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


def exponential(steps: int) -> list[float]:
    """Sigmas evenly spaced in log sigma from 14.61 to 0.0292, then 0.

    k-diffusion: get_sigmas_exponential; "uniform logSNR" in the papers on DPM-Solver.
    """
    logs = np.linspace(LOG_SIGMAS[-1], LOG_SIGMAS[0], check_steps(steps))
    return [math.exp(log) for log in logs] + [0.0]


def ddim(steps: int) -> list[float]:
    """Sigmas at t = 1 + i * (1000 // steps), highest first, then that of t = 0: 0.0292, not 0.

    CompVis: make_ddim_timesteps and make_ddim_sampling_parameters. Unlike the original it always
    has `steps` steps: the original runs 31 when asked for 30, and fails for 110.
    """
    if check_steps(steps) > 999:
        raise ValueError(f"the ddim schedule can have 1 to 999 steps, not {steps}")
    timesteps = [1 + i * (1000 // steps) for i in range(steps)]
    return [float(SIGMAS[t]) for t in reversed(timesteps)] + [float(SIGMAS[0])]


SCHEDULES: dict[str, Schedule] = {
    "model": model,
    "karras": karras,
    "exponential": exponential,
    "ddim": ddim,
}


def default_schedule(sampler: object) -> str:
    """The name of the schedule that a sampler uses if none is chosen."""
    return "ddim" if sampler == "ddim" else "model"


def start_index(steps: int, strength: float) -> int:
    """How many of `steps` steps img2img skips; it runs the other floor(steps * strength).

    Strength 0 runs none, 1 runs all. The product is rounded first, because 0.58 * 50 is 28.99...
    """
    if not 0 <= strength <= 1:
        raise ValueError(
            f"strength must be between 0 (keep the image) and 1 (ignore it), not {strength}"
        )
    return check_steps(steps) - math.floor(round(steps * strength, 9))


def check_steps(steps: int) -> int:
    try:
        if operator.index(steps) >= 1:
            return steps
    except TypeError:
        pass
    raise ValueError(f"steps must be a whole number, 1 or more, not {steps!r}")
