"""Schedules beyond those of the core."""

import math

import numpy as np

from minisd.schedule import LOG_SIGMAS, SIGMAS, check_steps


def exponential(steps: int) -> list[float]:
    """Sigmas evenly spaced in log sigma from 14.61 to 0.0292, then 0.

    k-diffusion: get_sigmas_exponential; "uniform logSNR" in the papers on DPM-Solver.
    """
    logs = np.linspace(LOG_SIGMAS[-1], LOG_SIGMAS[0], check_steps(steps))
    return [math.exp(log) for log in logs] + [0.0]


def ddim_original(steps: int) -> list[float]:
    """Sigmas at t = 1 + i * (1000 // steps), highest first, then that of t = 0.

    CompVis's DDIM in img2img (make_ddim_timesteps, of which it uses the lowest levels), and the
    spacing "leading" of diffusers. Where 1000 // steps is far below 1000 / steps, the noisiest
    levels are missing: 334 steps start at t = 667, and 501 steps at t = 501. (CompVis's txt2img
    also runs the levels above these: 31 steps when asked for 30.)
    """
    if check_steps(steps) > 999:
        raise ValueError(f"the ddim_original schedule can have 1 to 999 steps, not {steps}")
    timesteps = [1 + i * (1000 // steps) for i in reversed(range(steps))]
    return [float(SIGMAS[t]) for t in [*timesteps, 0]]
