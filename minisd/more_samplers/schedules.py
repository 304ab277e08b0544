"""Schedules beyond those of the core."""

import math
from collections.abc import Sequence

import numpy as np

from minisd.schedule import LOG_SIGMAS, SIGMAS, Schedule, check_steps, model, t_to_sigma


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


# ---- even spacing of the timesteps ---------------------------------------------------------------


def sgm_uniform(steps: int) -> list[float]:
    """Sigmas at `steps` timesteps evenly from 999, the next of which would be 0; then 0.

    AUTOMATIC1111 and ComfyUI: sgm_uniform, from Stability's sgm; "trailing" before rounding.
    """
    return [t_to_sigma(t) for t in np.linspace(999, 0, check_steps(steps) + 1)[:-1]] + [0.0]


def trailing(steps: int) -> list[float]:
    """Sigmas at t = round(1000 - i * 1000 / steps) - 1, then 0.

    Lin et al. 2023 (arXiv 2305.08891), table 2; the spacing "trailing" of diffusers.
    """
    if check_steps(steps) > 1000:
        raise ValueError(f"the trailing schedule can have 1 to 1000 steps, not {steps}")
    return [float(SIGMAS[round(1000 - i * 1000 / steps) - 1]) for i in range(steps)] + [0.0]


def ddim_uniform(steps: int) -> list[float]:
    """ddim_original with 0 as its last level: AUTOMATIC1111's ddim, and ComfyUI's ddim_uniform.

    Where these have more levels than asked for (8 for 7 steps), this is the lower end.
    """
    return ddim_original(steps)[:-1] + [0.0]


def simple(steps: int) -> list[float]:
    """Sigmas at t = 999 - floor(i * 1000 / steps), then 0. AUTOMATIC1111 and ComfyUI: simple."""
    if check_steps(steps) > 1000:
        raise ValueError(f"the simple schedule can have 1 to 1000 steps, not {steps}")
    return [float(SIGMAS[999 - i * 1000 // steps]) for i in range(steps)] + [0.0]


# ---- other shapes --------------------------------------------------------------------------------


def polyexponential(steps: int, rho: float = 1.0) -> list[float]:
    """Sigmas spaced as ramp^rho in log sigma from 14.61 to 0.0292, then 0; exponential with rho 1.

    k-diffusion: get_sigmas_polyexponential.
    """
    low, high = LOG_SIGMAS[0], LOG_SIGMAS[-1]
    ramp = np.linspace(1, 0, check_steps(steps)) ** rho
    return [math.exp(log) for log in ramp * (high - low) + low] + [0.0]


def beta(steps: int, alpha: float = 0.6) -> list[float]:
    """Sigmas at the timesteps that split Beta(alpha, alpha) evenly, rounded; then 0.

    Lee et al. 2024 (arXiv 2407.12173), in timesteps as in the paper and ComfyUI. Where rounding
    would repeat a timestep (from about 100 steps on), none is rounded.
    """
    shares = 1 - np.linspace(0, 1, check_steps(steps), endpoint=False)
    timesteps = 999 * beta_quantiles(shares, alpha)
    rounded = np.rint(np.round(timesteps, 9))  # 499.5, computed to 1e-13, becomes 500
    distinct = len(set(rounded)) == steps
    return [t_to_sigma(t) for t in (rounded if distinct else timesteps)] + [0.0]


def beta_a1111(steps: int, alpha: float = 0.6) -> list[float]:
    """The same quantiles in sigma, from 14.61 to 0.0292; then 0. AUTOMATIC1111: beta."""
    low, high = float(SIGMAS[0]), float(SIGMAS[-1])
    shares = 1 - np.linspace(0, 1, check_steps(steps))
    return [float(low + x * (high - low)) for x in beta_quantiles(shares, alpha)] + [0.0]


def beta_quantiles(shares: np.ndarray, alpha: float) -> np.ndarray:
    """For each share, the x below which this share of Beta(alpha, alpha) lies, by bisection.

    The distribution is symmetric. Up to 1/2 its integral is, up to a factor,
    x^alpha sum_n (1 - alpha)(2 - alpha)...(n - alpha) / n! x^n / (alpha + n).
    """

    def integral(x: np.ndarray) -> np.ndarray:
        total, term = np.zeros_like(x), np.ones_like(x)
        for n in range(60):  # the terms fall at least as 2^-n
            total = total + term / (alpha + n)
            term = term * (1 - alpha + n) / (n + 1) * x
        return x**alpha * total

    lower = np.minimum(shares, 1 - shares)
    low, high = np.zeros_like(shares), np.full_like(shares, 0.5)
    wanted = 2 * lower * integral(high)
    for _ in range(60):
        middle = (low + high) / 2
        too_low = integral(middle) < wanted
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return np.where(shares > 0.5, 1 - high, high)


def linear_quadratic(steps: int, threshold: float = 0.025) -> list[float]:
    """1 - sigma / 14.61 rises linearly to `threshold` in half of the steps, then as a parabola.

    ComfyUI: linear_quadratic, from Genmo's Mochi. Half of the steps stay above 14.2.
    """
    high = float(SIGMAS[-1])
    linear = check_steps(steps) // 2
    if steps == 1:
        return [high, 0.0]
    slope = threshold / linear
    rest = steps - linear
    curve = (1 - threshold - slope * rest) / rest**2
    ramp = [slope * i + curve * max(0, i - linear) ** 2 for i in range(steps)]
    return [high * (1 - value) for value in ramp] + [0.0]


def kl_optimal(steps: int) -> list[float]:
    """arctan(sigma) evenly spaced from 14.61 to 0.0292, then 0.

    Sabour et al. 2024 (Align Your Steps), for Gaussian data; ComfyUI: kl_optimal.
    """
    angles = np.linspace(math.atan(SIGMAS[-1]), math.atan(SIGMAS[0]), check_steps(steps))
    return [math.tan(angle) for angle in angles] + [0.0]


def kl_optimal_a1111(steps: int) -> list[float]:
    """steps + 1 of these levels, without the 0: it ends at 0.0292. AUTOMATIC1111: kl_optimal."""
    return kl_optimal(check_steps(steps) + 1)[:-1]


# Sabour et al. 2024, for SD 1.5 at 10 steps.
ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)


def align_your_steps(steps: int) -> list[float]:
    """The 11 levels of Sabour et al. 2024 (Align Your Steps) for SD 1.5, log-linear in between.

    The ends are the model's own, 14.6146 and 0.0292. It ends at 0.0292, as in the paper.
    """
    levels = [float(SIGMAS[-1]), *ALIGNED[1:-1], float(SIGMAS[0])]
    return log_linear(levels, check_steps(steps) + 1)


def align_your_steps_a1111(steps: int) -> list[float]:
    """The same curve at `steps` points from 14.615 to 0.029, then 0. AUTOMATIC1111's.

    Both ends are outside the levels of training, so it is not in minisd's table of schedules.
    """
    return [*log_linear(ALIGNED, check_steps(steps)), 0.0]


def log_linear(levels: Sequence[float], count: int) -> list[float]:
    """`count` points along the levels, evenly spaced in place, linear in log sigma."""
    places = np.linspace(0, len(levels) - 1, count)
    logs = np.interp(places, np.arange(len(levels)), np.log(levels))
    return [math.exp(log) for log in logs]


# ---- one level fewer -----------------------------------------------------------------------------


def discard_next_to_last(schedule: Schedule) -> Schedule:
    """The schedule of one more step without its next-to-last sigma: the last step is longer.

    AUTOMATIC1111's "discard next-to-last sigma", and ComfyUI's rule for dpm_2 and uni_pc.
    """

    def shortened(steps: int) -> list[float]:
        levels = schedule(check_steps(steps) + 1)
        return levels[:-2] + levels[-1:]

    return shortened


# Names that other programs have for these schedules; the rest have the same name there.
OTHER_NAMES: dict[str, Schedule] = {
    "normal": model,  # AUTOMATIC1111, ComfyUI
    "uniform": model,  # AUTOMATIC1111
    "leading": ddim_original,  # diffusers
}
