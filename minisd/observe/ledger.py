"""The ledger: it measures the noise of a run, and stops a run whose noise is wrong.

    with Ledger(sd) as ledger:
        img2img(sd, "fire", "drawing.png", observe=ledger)
    print(ledger.line())

The network must be passed the level of noise that was really added. Most programs of this kind got
that wrong for a while, and the picture only looks slightly off. So the ledger compares the two at
the network's first call, and raises NoiseMismatch if they differ. plan.py computes the same numbers
from the settings, before a run.

What is measured, always in float64 from the run's own float32 tensors:

sigma added      least squares of x on (x0, noise) over all elements: x = a x0 + b noise + rest.
                 a is the image gain, which must be 1; b is the noise gain, which must be sigma
sigma expected   t_to_sigma of the timestep that is passed to the network in its first call
image share      least squares of the network's first input on (x0, noise), as above: the factor
                 that the image still has there. It should be 1 / sqrt(sigma^2 + 1)
signal to noise  mean((a x0)^2) / mean((b noise)^2) in x, a ratio of powers. It should be
                 1 / sigma^2 for a latent of variance 1
calls            counted by a forward hook; with guidance, each is a batch of two
"""

import math
import warnings

from torch import Tensor

from minisd.observe.watch import Watcher
from minisd.run import Event, Noised
from minisd.samplers import Step
from minisd.schedule import t_to_sigma
from minisd.stable_diffusion import StableDiffusion

# Relative. Single precision costs 3e-7 (t is a float32 up to 999); the smallest known mistake, one
# step off in a schedule of 1000, is 5e-3.
TOLERANCE = 1e-5


class NoiseMismatch(ValueError):
    """The noise that was added is not the noise that the network expects."""


class Ledger(Watcher):
    """The observer that measures. With refuse=False, it warns where it would raise NoiseMismatch.

    With spoken=True the run speaks another program's dialect: a mismatch is that program's own
    rule, and stands in the line only.
    An attribute is None until it is measured, and where there is nothing to measure: txt2img has no
    image, and strength 0 makes no call.
    """

    def __init__(
        self, sd: StableDiffusion | None = None, refuse: bool = True, spoken: bool = False
    ):
        super().__init__(sd)
        self.refuse, self.spoken = refuse, spoken
        self.clear()

    def clear(self) -> None:
        """Forget the run that was measured."""
        self.sigma_added: float | None = None  # the noise gain, b above
        self.image_gain: float | None = None  # a above
        self.snr: float | None = None  # a ratio of powers
        self.sigma_expected: float | None = None
        self.t_expected: float | None = None
        self.image_share: float | None = None  # both are factors of amplitude, not of power
        self.noise_share: float | None = None
        self.mismatch: str | None = None  # what is wrong, where the run was not refused
        self.calls = 0
        self.steps_run = 0
        self.parts: tuple[Tensor, Tensor] | None = None  # x0 and noise, until the first call

    def __call__(self, event: Event) -> None:
        if isinstance(event, Noised):
            self.clear()
            self.measure_insertion(event)
        elif isinstance(event, Step):
            self.steps_run += 1

    def measure_insertion(self, event: Noised) -> None:
        noise, x = event.noise.cpu().double(), event.x.cpu().double()
        x0 = event.x0.cpu().double().expand_as(noise)  # one image for all noises of a batch
        try:
            self.image_gain, self.sigma_added = gains(x, x0, noise)
        except NoiseMismatch as error:
            self.report(str(error))
            return
        if self.image_gain is not None and self.sigma_added:
            signal, noise_part = self.image_gain * x0, self.sigma_added * noise
            self.snr = float((signal**2).mean() / (noise_part**2).mean())
        self.parts = (x0, noise)
        if self.image_gain is not None and abs(self.image_gain - 1) > self.tolerance:
            self.report(f"the gain of the image in x is {self.image_gain:.6f}, not 1")

    def see_call(self, x_in: Tensor, t: Tensor, context: Tensor, eps: Tensor) -> None:
        self.calls += 1
        if self.calls > 1 or self.parts is None:
            return
        x0, noise = self.parts
        self.parts = None
        first = x_in[: len(noise)].cpu().double()
        self.image_share, self.noise_share = gains(first, x0, noise)
        self.t_expected = float(t[0])
        unet = self.sd.unet if self.sd else None  # it may have another training schedule
        to_sigma = getattr(unet, "t_to_sigma", t_to_sigma)
        self.sigma_expected = to_sigma(self.t_expected)
        sigma = self.sigma_added if self.is_rounded_end else self.sigma_expected
        scale = (sigma**2 + 1) ** -0.5
        added = f"the noise added has sigma {self.sigma_added:.6f}"
        if relative_difference(self.sigma_added, sigma) > TOLERANCE:
            expected = f"{self.sigma_expected:.6f} (t = {self.t_expected:.2f})"
            self.report(f"{added}, but the network expects {expected}")
        elif relative_difference(self.sigma_of_input, self.sigma_added) > self.tolerance:
            self.report(f"{added}, but the network's input holds {self.sigma_of_input:.6f}")
        elif relative_difference(self.input_scale, scale) > self.tolerance:
            factors = f"{self.input_scale:.6f}, not {scale:.6f} = 1 / sqrt(sigma^2 + 1)"
            self.report(f"the network's input is x times {factors}")

    @property
    def is_rounded_end(self) -> bool:
        """Whether the level is less than 1 % beyond the network's highest or lowest.

        Published lists of levels start at 14.615 and end at 0.029. The network has none that is
        closer than its own last one.
        """
        if self.sigma_added is None or self.sigma_expected is None:
            return False
        excess = self.sigma_added / self.sigma_expected
        return (self.t_expected == 999 and 1 < excess < 1.01) or (
            self.t_expected == 0 and 0.99 < excess < 1
        )

    def report(self, mismatch: str) -> None:
        if self.refuse and not self.spoken:
            raise NoiseMismatch(mismatch)
        self.mismatch = mismatch
        if self.spoken:
            return
        warnings.warn(f"THE NOISE IS WRONG: {mismatch}. The picture will be wrong", stacklevel=2)

    @property
    def tolerance(self) -> float:
        """For the image: where it is small beside the noise, rounding is large beside it."""
        return TOLERANCE * (max(1, self.snr**-0.5) if self.snr else 1)

    @property
    def sigma_of_input(self) -> float | None:
        """The noise level in the network's first input: noise share over image share."""
        if not self.image_share or self.noise_share is None:
            return None
        return self.noise_share / self.image_share

    @property
    def input_scale(self) -> float | None:
        """The factor from x to the network's first input."""
        if self.image_gain and self.image_share is not None:
            return self.image_share / self.image_gain
        if self.sigma_added and self.noise_share is not None:
            return self.noise_share / self.sigma_added
        return None

    def line(self) -> str:
        """All measured numbers in one line of text."""
        if not self.calls:
            gain = "" if self.image_gain is None else f"image gain {self.image_gain:.6f}, "
            return f"measured: {gain}no noise, no call of the network"
        parts = []
        if self.sigma_added is not None and self.sigma_expected is not None:
            parts.append(f"sigma {self.sigma_added:.4f} added, {self.sigma_expected:.4f} expected")
            if self.image_gain is not None:
                parts.append(f"image gain {self.image_gain:.6f}")
                parts.append(f"noise gain {self.sigma_added / self.sigma_expected:.6f} sigma")
        if self.snr is not None and self.image_share is not None:
            parts.append(f"signal to noise {power_ratio(self.snr)}")
            parts.append(f"{self.image_share:.1%} of the image survives")
        parts.append(f"{self.calls} network calls")
        if self.mismatch:
            parts.append("as the dialect has it" if self.spoken else "THE NOISE IS WRONG")
        return "measured: " + ", ".join(parts)


def gains(x: Tensor, x0: Tensor, noise: Tensor) -> tuple[float | None, float | None]:
    """(a, b) of x = a x0 + b noise, by least squares over all elements.

    An x0 or a noise of zeros has no gain: None. Raises NoiseMismatch if x0 and noise are parallel,
    because then their gains cannot be separated.
    """
    xx, nn, xn = float((x0 * x0).sum()), float((noise * noise).sum()), float((x0 * noise).sum())
    on_x0, on_noise = float((x * x0).sum()), float((x * noise).sum())
    if xx == 0 or nn == 0:
        return (on_x0 / xx if xx else None), (on_noise / nn if nn else None)
    determinant = xx * nn - xn * xn
    if determinant < 1e-9 * xx * nn:
        raise NoiseMismatch("the image is the noise: their gains cannot be separated")
    return (on_x0 * nn - on_noise * xn) / determinant, (on_noise * xx - on_x0 * xn) / determinant


def relative_difference(a: float | None, b: float | None) -> float:
    """Of two sigmas; 0 if one was not measured."""
    return abs(a / b - 1) if a is not None and b else 0.0


def power_ratio(snr: float) -> str:
    """A ratio of powers, as a number and in decibels."""
    return f"{snr:.4g} ({10 * math.log10(snr):+.1f} dB)" if snr > 0 else "0"
