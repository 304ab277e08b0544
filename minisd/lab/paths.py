"""The strong order of samplers that add noise: how fast their results settle on a Brownian path."""

from bisect import bisect_left

import torch
from torch import Tensor

from minisd.lab import card
from minisd.lab.card import Line
from minisd.lab.quality import plain_schedule
from minisd.lab.subject import GAUSSIAN, HIGH, LOW, Subject, all_steps, latent, log_slope, rms

STEPS = (64, 128, 256)
MARGIN = 0.2  # the gaps of 1024 elements have a spread of 4 %, which is 0.08 of an order


class SampledPath:
    """A Brownian path W over sigma, as a noise source (x, sigma, sigma_next) -> noise.

    It has the law of `more_samplers.brownian.BrownianPath`, and is 20 times faster for a schedule
    of many steps: W is drawn where it is asked for, given its neighbours that are known already.
    So it depends on the order of the questions, and all runs must use the same object.
    """

    def __init__(self, x: Tensor, seed: int = 0, high: float = HIGH):
        self.rng = torch.Generator().manual_seed(seed)
        self.zero = torch.zeros_like(x)
        self.sigmas = [LOW, high]
        self.values = [self.zero, self.normal() * (high - LOW) ** 0.5]

    def normal(self) -> Tensor:
        return torch.randn(self.zero.shape, generator=self.rng).to(self.zero)

    def value(self, sigma: float) -> Tensor:
        """W(sigma). Between two known values it is normal about the line that joins them."""
        i = bisect_left(self.sigmas, sigma * (1 - 1e-12))
        if i < len(self.sigmas) and self.sigmas[i] <= sigma * (1 + 1e-12):
            return self.values[i]
        if i in (0, len(self.sigmas)):
            raise ValueError(f"the path does not reach sigma {sigma:g}")
        (a, b), (w, w_next) = self.sigmas[i - 1 : i + 1], self.values[i - 1 : i + 1]
        share = (sigma - a) / (b - a)
        spread = ((sigma - a) * (b - sigma) / (b - a)) ** 0.5
        self.sigmas.insert(i, sigma)
        self.values.insert(i, w + share * (w_next - w) + spread * self.normal())
        return self.values[i]

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        change = self.value(sigma) - self.value(sigma_next or LOW)
        return -change / abs(sigma - (sigma_next or LOW)) ** 0.5


def check_strong(subject: Subject) -> list[Line]:
    """On one Brownian path, do more steps lead to one result? The distances of runs of doubled
    steps fall with steps^order. With new draws at each step they do not fall at all.
    """
    if not subject.draws:
        return []
    x = latent(HIGH, 0.3, 0.5, size=16)
    path = SampledPath(x)
    try:
        ends = [
            all_steps(subject.sampler, GAUSSIAN, x, plain_schedule(steps), path)[-1].x_next
            for steps in STEPS
        ]
    except (ValueError, TypeError, AttributeError):
        reason = "not on a path: fresh_noise needs sigma and sigma_next"
        return [card.STRONG_ORDER.line(float("nan"), expected=reason)]
    gaps = [(steps, rms(a - b)) for steps, a, b in zip(STEPS, ends, ends[1:])]
    order, theory = log_slope(gaps), subject.theory.strong_order
    if theory is None:
        return [card.STRONG_ORDER.line(order)]
    passed = abs(order - theory) <= MARGIN
    return [card.STRONG_ORDER.line(order, passed, f"{theory} ± {MARGIN}")]


CHECKS = [check_strong]
