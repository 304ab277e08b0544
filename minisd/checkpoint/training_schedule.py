"""A checkpoint's own noise schedule, where it was trained on another one than SD 1.x's.

minisd uses SD 1.x's levels unless a recipe asks for the schedule "file". Files with zero terminal
SNR were trained down to pure noise (Lin et al. 2024, "Common diffusion noise schedules and sample
steps are flawed").
"""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minisd.checkpoint.forms import Tensors
from minisd.checkpoint.numbers import DTYPES, read_stored
from minisd.schedule import ABAR, check_steps
from minisd.stable_diffusion import StableDiffusion

# In place of an abar of 0, whose sigma would be infinite: sigma 4096. diffusers:
# EulerDiscreteScheduler, with rescale_betas_zero_snr. An abar of 1 has the logarithm of 0.
LEAST_ABAR = 2.0**-24


class TrainingSchedule:
    """The 1000 levels that a network was trained on. Called with a count, a schedule.

    abar: (1000,), the share of the variance that is still picture, falling from about 1
    """

    __name__ = "file"

    def __init__(self, abar: Any):
        abar = np.asarray(abar, dtype=float)
        falls = abar.shape == (1000,) and (np.diff(abar) < 0).all()
        if not falls or not 0 <= abar[-1] < abar[0] <= 1:
            raise ValueError("a noise schedule must be 1000 numbers that fall, between 1 and 0")
        abar = np.clip(abar, LEAST_ABAR, 1 - LEAST_ABAR)
        self.log_sigmas = np.log((1 - abar) / abar) / 2  # (1000,)
        self.trained_on = tuple(np.exp(self.log_sigmas[[0, -1]]).tolist())  # lowest and highest

    def __call__(self, steps: int) -> list[float]:
        """Sigmas at `steps` timesteps, evenly from 999 to 0, then 0, as minisd.schedule.model."""
        return [self.t_to_sigma(t) for t in np.linspace(999, 0, check_steps(steps))] + [0.0]

    def t_to_sigma(self, t: float) -> float:
        """The level at a timestep; linear in log sigma between two."""
        return math.exp(np.interp(t, np.arange(1000), self.log_sigmas))

    def sigma_to_t(self, sigma: float) -> float:
        """The timestep at which the network expects this level; within 0..999."""
        log = math.log(max(sigma, self.trained_on[0]))
        return float(np.interp(log, self.log_sigmas, np.arange(1000)))


def recorded_schedule(tensors: Tensors, path: Path) -> tuple[str, list[float] | None]:
    """What a file says about its training schedule, and its abar if that is not SD 1.x's."""
    stored = tensors.get("alphas_cumprod")
    zero = "not SD 1.x's but one down to pure noise (zero terminal SNR)"
    if stored is None or stored.dtype not in DTYPES or stored.shape != (1000,):
        return (zero, zero_terminal_snr()) if "ztsnr" in tensors else ("not recorded", None)
    abar = read_stored(path, stored).double().numpy()
    if not np.isfinite(abar).all():
        return "damaged: it holds NaN or Inf", None
    is_usual = np.allclose(abar, ABAR, rtol=2e-2, atol=1e-3)  # wide enough for bfloat16
    if "ztsnr" in tensors and is_usual:  # the trainer changed it after the file was made
        return zero, zero_terminal_snr()
    if is_usual:
        return "SD 1.x's", None
    try:
        TrainingSchedule(abar)
    except ValueError as error:
        return f"damaged: {error}", None
    is_zero = "ztsnr" in tensors or abs(abar[-1]) < 1e-6
    return zero if is_zero else "not SD 1.x's", abar.tolist()


def zero_terminal_snr() -> list[float]:
    """SD 1.x's abar, moved and scaled so that the last is 0 and the first stays. Lin et al. 2024,
    algorithm 1."""
    roots = np.sqrt(ABAR)
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return (roots**2).tolist()


def with_own_schedule(sd: StableDiffusion) -> StableDiffusion:
    """The same models, run at the levels of their own training; unchanged if those are SD 1.x's.

    Its UNet gets the timesteps of that schedule, and has it as `unet.schedule`, for img2img.
    """
    if sd.abar is None:
        return sd
    schedule = TrainingSchedule(sd.abar)
    unet = copy.copy(sd.unet)  # the layers are shared
    vars(unet).update(
        schedule=schedule,
        log_sigmas=schedule.log_sigmas,
        sigma_to_t=schedule.sigma_to_t,
        t_to_sigma=schedule.t_to_sigma,
    )
    return replace(sd, unet=unet)
