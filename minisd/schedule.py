"""How noisy a latent is, and the lists of noise levels ("grids") that a sampler walks down.

A latent on its way is `x = x0 + sigma * noise`, so sigma is the noise's standard deviation in units
of the latent's own. The papers count the same thing as abar, the share of variance that is still
picture: `abar = 1 / (sigma^2 + 1)`. The network was trained on 1000 levels, t = 0 (almost clean) to
999 (almost noise).
"""

import math
import operator
from collections.abc import Callable

import numpy as np

# SD 1.x's training schedule, linear in sqrt(beta). CompVis: make_beta_schedule, with what is in
# configs/stable-diffusion/v1-inference.yaml. In float64: float32 is 1e-5 off at t = 0.
BETAS = np.linspace(0.00085**0.5, 0.0120**0.5, 1000) ** 2  # (1000,)
ABAR = np.cumprod(1 - BETAS)  # (1000,)  0.9991 ... 0.0047
SIGMAS = np.sqrt((1 - ABAR) / ABAR)  # (1000,)  0.0292 ... 14.6146
LOG_SIGMAS = np.log(SIGMAS)


def t_to_sigma(t: float) -> float:
    """Noise level at timestep t in 0..999; between two, linear in log sigma as in k-diffusion."""
    return math.exp(np.interp(t, np.arange(1000), LOG_SIGMAS))


def sigma_to_t(sigma: float) -> float:
    """Timestep, mostly fractional, at which the network expects this sigma; clamped to 0..999."""
    return float(np.interp(math.log(max(sigma, SIGMAS[0])), LOG_SIGMAS, np.arange(1000)))


def model(steps: int) -> list[float]:
    """Sigmas at `steps` timesteps evenly from 999 to 0 (14.61 to 0.0292), then 0.

    k-diffusion: DiscreteSchedule.get_sigmas.
    """
    return [t_to_sigma(t) for t in np.linspace(999, 0, check_steps(steps))] + [0.0]


def karras(steps: int, rho: float = 7.0) -> list[float]:
    """Sigmas even in sigma^(1/rho) between the model's own extremes, 14.61 and 0.0292, then 0.

    Karras et al. 2022, equation 5.
    """
    high, low = SIGMAS[-1] ** (1 / rho), SIGMAS[0] ** (1 / rho)
    return [float(s) ** rho for s in np.linspace(high, low, check_steps(steps))] + [0.0]


def exponential(steps: int) -> list[float]:
    """Sigmas even in log sigma between the model's own extremes, 14.61 and 0.0292, then 0.

    k-diffusion: get_sigmas_exponential; "uniform logSNR" in DPM-Solver's papers.
    """
    logs = np.linspace(LOG_SIGMAS[-1], LOG_SIGMAS[0], check_steps(steps))
    return [math.exp(log) for log in logs] + [0.0]


def ddim(steps: int) -> list[float]:
    """Sigmas at t = 1 + i * (1000 // steps), highest first, then that of t = 0: 0.0292, not 0.

    CompVis: make_ddim_timesteps and make_ddim_sampling_parameters, but always with exactly `steps`
    steps: the original runs 31 when asked for 30, and leaves the table for 110.
    """
    if check_steps(steps) > 999:
        raise ValueError(f"the ddim schedule has room for 1 to 999 steps, not {steps}")
    timesteps = [1 + i * (1000 // steps) for i in range(steps)]
    return [float(SIGMAS[t]) for t in reversed(timesteps)] + [float(SIGMAS[0])]


SCHEDULES: dict[str, Callable[[int], list[float]]] = {
    "model": model,
    "karras": karras,
    "exponential": exponential,
    "ddim": ddim,
}


def start_index(steps: int, strength: float) -> int:
    """Where img2img enters a grid of `steps` steps: it drops these, runs floor(steps * strength).

    strength 0 runs no step, 1 runs all. The product is rounded first: 0.58 * 50 is 28.99...
    """
    if not 0 <= strength <= 1:
        raise ValueError(
            f"strength must lie between 0 (keep the image) and 1 (ignore it), not {strength}"
        )
    return check_steps(steps) - math.floor(round(steps * strength, 9))


def steps_after(run: int, strength: float, most: int = 10_000) -> int:
    """How many steps to ask for, so that `run` of them are run at this strength.

    The smallest count of which start_index leaves `run` steps: run / strength, rounded up. Of all
    such counts, its share run / steps is nearest to the strength, so the noise put in is too. Above
    strength 0 there always is one, since one step more asked is one step more run, or none.
    ValueError where it would be over `most`, and at strength 0, which never runs a step.
    """
    check_steps(run)
    start_index(1, strength)  # raises ValueError for a strength that is none
    steps = math.ceil(round(run / strength, 9)) if strength * most >= run else most + 1
    while steps <= most and steps - start_index(steps, strength) < run:
        steps += 1  # the product's rounding and the quotient's may differ by one
    if steps > most:
        longest = most - start_index(most, strength)
        said = f"no count up to {most} runs {run} steps at strength {strength}"
        raise ValueError(f"{said}: {most} run {longest}")
    return steps


def check_steps(steps: int) -> int:
    try:
        if operator.index(steps) >= 1:
            return steps
    except TypeError:
        pass
    raise ValueError(f"steps must be a whole number, 1 or more, not {steps!r}")
