"""Noise levels as other programs compute them: in float32, to the last digit.

minisd's own levels are in float64. The programs round at different places, which matters at t = 0
only (1.3e-5), and there just for comparisons.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from minisd.more_samplers import schedules
from minisd.schedule import ABAR


@dataclass(frozen=True)
class Table:
    """A program's noise levels at t = 0 ... 999, and its way from a level to a timestep."""

    abar: Tensor  # (1000,) float32, or float64 where the program has that
    sigmas: Tensor  # (1000,) float32
    logs: Tensor  # (1000,) float32, log(sigmas), rounded after the logarithm

    def levels(self, t: Tensor) -> Tensor:
        """The levels at timesteps; linear in log sigma in between. k-diffusion: t_to_sigma."""
        low, high, share = t.floor().long(), t.ceil().long(), t.frac()
        logs = self.logs
        return ((1 - share) * logs[low] + share * logs[high]).exp()

    def t_of(self, sigma: float) -> float:
        """The timestep of a level, fractional. k-diffusion: sigma_to_t."""
        logs = self.logs
        log = torch.tensor(sigma).log()
        low = int((log >= logs).sum().clamp(1, 999)) - 1
        share = ((logs[low] - log) / (logs[low] - logs[low + 1])).clamp(0, 1)
        return float((1 - share) * low + share * (low + 1))

    def nearest(self, sigma: float) -> float:
        """The timestep whose level is nearest, in log sigma: a whole number."""
        distances = (torch.tensor(sigma).log() - self.logs).abs().tolist()
        return float(distances.index(min(distances)))

    @property
    def low(self) -> float:
        return float(self.sigmas[0])

    @property
    def high(self) -> float:
        return float(self.sigmas[-1])


@cache
def table(kind: str = "float32", downcast: bool = False) -> Table:
    """The table of AUTOMATIC1111, CompVis and InvokeAI ("float32"), ComfyUI ("float64"), diffusers.

    downcast  all of it is computed in float16, as in older versions of AUTOMATIC1111's program
    """
    if kind == "diffusers":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
        abar = torch.cumprod(1.0 - betas, dim=0)
    else:
        abar = torch.from_numpy(ABAR)
        abar = abar if kind == "float64" else abar.float()
    abar = abar.half() if downcast else abar
    sigmas = ((1 - abar) / abar) ** 0.5
    return Table(abar.float(), sigmas.float(), sigmas.log().float())


# ---- schedules -----------------------------------------------------------------------------------
# Each is a function (table, n) -> levels, highest first. Most have n + 1.

Schedule = Callable[[Table, int], list[float]]


def uniform(levels: Table, n: int) -> list[float]:
    return [*levels.levels(torch.linspace(999, 0, n)).tolist(), 0.0]


def karras(levels: Table, n: int, rho: float = 7.0) -> list[float]:
    return [*karras_between(levels.low, levels.high, n, rho), 0.0]


def karras_between(low: float, high: float, n: int, rho: float = 7.0) -> list[float]:
    first, last = high ** (1 / rho), low ** (1 / rho)
    return ((first + torch.linspace(0, 1, n) * (last - first)) ** rho).tolist()


def karras_of_diffusers(low: float, high: float, n: int) -> list[float]:
    """In float64 until the end."""
    first, last = high ** (1 / 7), low ** (1 / 7)
    return rounded((first + np.linspace(0, 1, n) * (last - first)) ** 7)


def exponential(levels: Table, n: int) -> list[float]:
    logs = torch.linspace(math.log(levels.high), math.log(levels.low), n)
    return [*logs.exp().tolist(), 0.0]


def polyexponential(levels: Table, n: int, rho: float = 1.0) -> list[float]:
    ramp = torch.linspace(1, 0, n) ** rho
    logs = ramp * (math.log(levels.high) - math.log(levels.low)) + math.log(levels.low)
    return [*logs.exp().tolist(), 0.0]


def sgm_uniform(levels: Table, n: int) -> list[float]:
    return [*levels.levels(torch.linspace(999, 0, n + 1)[:-1]).tolist(), 0.0]


def simple(levels: Table, n: int) -> list[float]:
    return [*(float(levels.sigmas[-(1 + int(i * 1000 / n))]) for i in range(n)), 0.0]


def ddim_uniform(levels: Table, n: int) -> list[float]:
    """From t = 1 in steps of 1000 // n: more than n levels where n does not divide 1000."""
    return [*reversed(levels.sigmas[1 :: max(1, 1000 // n)].tolist()), 0.0]


def align_your_steps(levels: Table, n: int) -> list[float]:
    return rounded(schedules.align_your_steps_a1111(n))


def kl_optimal_to_low(levels: Table, n: int) -> list[float]:
    """AUTOMATIC1111's: it ends at the lowest level, not at 0."""
    share = torch.arange(n + 1) / n
    low, high = torch.tensor(levels.low).arctan(), torch.tensor(levels.high).arctan()
    return (share * low + (1 - share) * high).tan().tolist()


def kl_optimal_to_zero(levels: Table, n: int) -> list[float]:
    """ComfyUI's."""
    share = torch.arange(n, dtype=torch.float32) / max(1, n - 1)
    angles = share * math.atan(levels.low) + (1 - share) * math.atan(levels.high)
    return [*angles.tan().tolist(), 0.0]


def beta_in_sigma(levels: Table, n: int) -> list[float]:
    """AUTOMATIC1111's: the quantiles of Beta(0.6, 0.6) between the table's ends."""
    shares = schedules.beta_quantiles(1 - np.linspace(0, 1, n), 0.6)
    return [*rounded(levels.low + shares * (levels.high - levels.low)), 0.0]


def beta_in_t(levels: Table, n: int) -> list[float]:
    """ComfyUI's: in timesteps, without repeats, so that many steps give fewer levels."""
    shares = schedules.beta_quantiles(1 - np.linspace(0, 1, n, endpoint=False), 0.6)
    timesteps = dict.fromkeys(int(t) for t in np.rint(np.round(999 * shares, 9)))
    return [*(float(levels.sigmas[t]) for t in timesteps), 0.0]


def linear_quadratic(levels: Table, n: int) -> list[float]:
    shares = np.array(schedules.linear_quadratic(n)) / schedules.linear_quadratic(1)[0]
    return (torch.from_numpy(shares).float() * levels.sigmas[-1]).tolist()


def rounded(values: np.ndarray | list[float]) -> list[float]:
    """The values in float32."""
    return np.float32(values).tolist()


# ---- VP schedules --------------------------------------------------------------------------------


def leading(n: int, length: int | None = None) -> list[int]:
    """CompVis's timesteps, lowest first: 1 + i * (1000 // n).

    Without a length, as many as there are below 1000. Raises ValueError if one is 1000.
    """
    stride = 1000 // n
    count = -(-1000 // stride) if length is None else length
    return [1 + i * stride for i in range(count)]


@dataclass(frozen=True)
class ContinuousTime:
    """DPM-Solver's time from 0.001 to 1, over the table: log alpha is linear in between."""

    levels: Table

    def sigma(self, time: float) -> float:
        logs = 0.5 * self.levels.abar.double().log().numpy()
        log_alpha = float(np.interp(time, np.arange(1, 1001) / 1000, logs))
        return math.sqrt(math.expm1(-2 * log_alpha))

    def run(self, start: float, n: int) -> tuple[list[float], dict[float, float]]:
        """n + 1 levels from this time down to 0.001, and the timestep of each."""
        times = np.linspace(start, 0.001, n + 1)
        sigmas = [self.sigma(time) for time in times]
        return sigmas, {s: 1000 * float(time) - 1 for s, time in zip(sigmas, times)}
