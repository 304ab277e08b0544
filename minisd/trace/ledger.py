"""The ledger: what a run's noise insertion should be, and what it measurably is.

`plan` computes from the settings alone, without torch and without a model: `minisd explain` prints
that. `Ledger` is an observer that measures the same numbers in a run, and refuses one whose network
is told of other noise than was put in: most systems had that mistake for a while, and it shows in
the picture only as "a bit off".

What is measured, always in float64 from the run's own float32 tensors:

noise put in     least squares of x on (x0, noise) over all elements: x = a x0 + b noise + rest.
                 a is the image gain, which should be 1, b the noise gain, which should be sigma
sigma told       from the first call of the network: t_to_sigma of the timestep it was given
share of image   least squares of the network's first input on (x0, noise), as above: the factor
                 with which the picture is still in there. 1 / sqrt(sigma^2 + 1) is due
signal to noise  mean((a x0)^2) / mean((b noise)^2), as there are in x. 1 / sigma^2 is due for a
                 latent of variance 1
calls            counted by a forward hook; with guidance each is a batch of two
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from minisd.schedule import SCHEDULES, start_index, t_to_sigma
from minisd.trace.watch import watching

if TYPE_CHECKING:
    from torch import Tensor

# Relative. Single precision costs 3e-7 (t is a float32 up to 999); the smallest known mistake, one
# step off in a schedule of 1000, is 5e-3.
TOLERANCE = 1e-5


class Refused(ValueError):
    """The noise put in is not the noise that the network is told of."""


# ---- before a run ------------------------------------------------------------------------------


def one_call(sigma_next: float, first: bool) -> int:
    return 1


def two_calls(sigma_next: float, first: bool) -> int:
    return 2 if sigma_next > 0 else 1  # at sigma 0 there is nothing to ask


# How often a sampler calls the network in a step. Here, not in samplers.py: that needs torch.
CALLS: dict[str, Callable[[float, bool], int]] = {
    "k_lms": one_call,
    "ddim": one_call,
    "plms": lambda sigma_next, first: 2 if first and sigma_next > 0 else 1,
    "k_euler": one_call,
    "k_euler_a": one_call,
    "k_heun": two_calls,
    "k_dpm_2": two_calls,
    "k_dpm_2_a": two_calls,
    "k_dpmpp_2": one_call,
    "k_dpmpp_2_a": two_calls,
}


@dataclass(frozen=True)
class Plan:
    """What a run is going to do."""

    strength: float
    sampler: str
    schedule: str
    grid: list[float]  # of all steps asked
    dropped: int

    @property
    def steps(self) -> int:
        return len(self.grid) - 1

    @property
    def run(self) -> int:
        return self.steps - self.dropped

    @property
    def sigma(self) -> float:
        """The noise put in, and told. Where no step is run, none is put in."""
        return self.grid[self.dropped] if self.run else 0.0

    @property
    def share(self) -> float:
        """The image's part in what the network sees first; its square is the papers' abar."""
        return 1 / math.sqrt(self.sigma**2 + 1)

    @property
    def calls(self) -> int:
        count = CALLS[self.sampler]
        steps = enumerate(pairwise(self.grid[self.dropped :]))
        return sum(count(sigma_next, i == 0) for i, (_, sigma_next) in steps)


def plan(steps: int, strength: float, sampler: str = "k_lms", schedule: str | None = None) -> Plan:
    """schedule None is the sampler's own. Raises ValueError for names and numbers that are none."""
    schedule = schedule or ("ddim" if sampler == "ddim" else "model")
    for what, name, known in (("sampler", sampler, CALLS), ("schedule", schedule, SCHEDULES)):
        if name not in known:
            raise ValueError(f"no {what} is named {name!r}; there are {', '.join(known)}")
    grid = SCHEDULES[schedule](steps)
    return Plan(strength, sampler, schedule, grid, start_index(steps, strength))


# ---- in a run ----------------------------------------------------------------------------------


@dataclass
class Ledger:
    """The observer that measures. `called` is for the network's calls; `auditing` sets up both.

    An attribute is None until it is measured, and where there is nothing to measure: txt2img has no
    image, strength 0 makes no call.
    """

    sigma_put: float | None = None  # the noise gain: b above
    image_gain: float | None = None  # a above
    snr: float | None = None
    sigma_told: float | None = None
    t_told: float | None = None
    share_of_image: float | None = None
    share_of_noise: float | None = None
    calls: int = 0
    run: int = 0  # steps
    shown: dict[str, Any] = field(default_factory=dict, repr=False)  # until the first call

    def __call__(self, name: str, **values: Any) -> None:
        if name == "noised":
            x0, noise, x = (values[key].cpu().double() for key in ("x0", "noise", "x"))
            self.image_gain, self.sigma_put = gains(x, x0, noise)
            if self.image_gain is not None and self.sigma_put:
                signal, noise_part = self.image_gain * x0, self.sigma_put * noise
                self.snr = float((signal**2).mean() / (noise_part**2).mean())
            self.shown = {"x0": x0, "noise": noise}
            if self.image_gain is not None and abs(self.image_gain - 1) > self.tolerance:
                raise Refused(f"the image goes in with a gain of {self.image_gain:.6f}, not 1")
        elif name == "step":
            self.run += 1

    def called(self, x_in: "Tensor", t: "Tensor", context: "Tensor", eps: "Tensor") -> None:
        self.calls += 1
        if self.calls > 1 or not self.shown:
            return
        x0, noise = self.shown["x0"], self.shown["noise"]
        first = x_in[: len(x0)].cpu().double()
        self.share_of_image, self.share_of_noise = gains(first, x0, noise)
        self.t_told = float(t[0])
        self.sigma_told = t_to_sigma(self.t_told)
        self.shown = {}
        scale = self.told_by_scale
        if off(self.sigma_put, self.sigma_told) > TOLERANCE:
            told = f"{self.sigma_told:.6f} (t = {self.t_told:.2f})"
        elif off(scale, self.sigma_put) > self.tolerance:
            told = f"{scale:.6f} by the scale of its input"
        else:
            return
        put = f"the noise put in has sigma {self.sigma_put:.6f}"
        raise Refused(f"{put}, and the network is told {told}: no right picture can come of it")

    @property
    def tolerance(self) -> float:
        """For the image: where it is small beside the noise, it drowns in rounding."""
        return TOLERANCE * (max(1, self.snr**-0.5) if self.snr else 1)

    @property
    def told_by_scale(self) -> float | None:
        """The sigma that the scaling of the network's input tells: noise's share over image's."""
        if not self.share_of_image or self.share_of_noise is None:
            return None
        return self.share_of_noise / self.share_of_image

    def line(self) -> str:
        """All of it in a line."""
        if not self.calls:
            gain = "" if self.image_gain is None else f"image gain {self.image_gain:.6f}, "
            return f"measured: {gain}no noise, no call of the network"
        said = [f"sigma {self.sigma_put:.4f} put in", f"{self.sigma_told:.4f} told"]
        if self.image_gain is not None:
            said.append(f"image gain {self.image_gain:.6f}")
            said.append(f"noise gain {self.sigma_put / self.sigma_told:.6f} sigma")
        if self.snr is not None:
            said.append(f"signal to noise {ratio(self.snr)}")
            said.append(f"{self.share_of_image:.1%} of the image survives")
        said.append(f"{self.calls} network calls")
        return "measured: " + ", ".join(said)


def gains(x: "Tensor", x0: "Tensor", noise: "Tensor") -> tuple[float | None, float | None]:
    """(a, b) of x = a x0 + b noise, by least squares over all elements. An all-zero x0 or noise has
    no gain: None."""
    xx, nn, xn = float((x0 * x0).sum()), float((noise * noise).sum()), float((x0 * noise).sum())
    on_x0, on_noise = float((x * x0).sum()), float((x * noise).sum())
    if xx == 0 or nn == 0:
        return (on_x0 / xx if xx else None), (on_noise / nn if nn else None)
    determinant = xx * nn - xn * xn
    if determinant < 1e-9 * xx * nn:
        raise Refused(
            "the image and the noise are one and the same: their gains can't be told apart"
        )
    return (on_x0 * nn - on_noise * xn) / determinant, (on_noise * xx - on_x0 * xn) / determinant


@contextmanager
def auditing(unet: Any) -> Iterator[Ledger]:
    """A Ledger to observe a run with, which sees the network's calls meanwhile.

    with auditing(sd.unet) as ledger: img2img(sd, ..., observe=ledger)
    """
    ledger = Ledger()
    with watching(unet, ledger.called):
        yield ledger


def off(a: float | None, b: float | None) -> float:
    """The relative difference of two sigmas; 0 where one was not measured."""
    return abs(a / b - 1) if a is not None and b else 0.0


def ratio(snr: float) -> str:
    return f"{snr:.4g} ({10 * math.log10(snr):+.1f} dB)" if snr > 0 else "0"
