"""Models that are known exactly, to hold samplers against: each is a `predict_eps`.

If the data's distribution is known, so is the best possible network: x0 = E[x0 | x, sigma], the
mean of the posterior, and eps = (x - x0) / sigma. Samplers follow dx/dsigma = eps (Karras et al.
2022, equation 1, with sigma for time), whose solution is known as well where elements are
independent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from minisd.schedule import t_to_sigma
from minisd.step import PredictEps


@dataclass(frozen=True)
class Mixture:
    """Data whose elements are independent, each from a mixture of normals (weight, mean, std).

    One component is a Gaussian, for which eps is linear in x. A std of 0 is a single point, for
    which every consistent sampler is exact.
    """

    components: tuple[tuple[float, float, float], ...]

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """eps at x: each component's own x0 is Bayes' for two normals, weighted by its
        likelihood."""
        logs, x0s = [], []
        for weight, mean, std in self.components:
            variance = std**2 + sigma**2  # of x, if this component made it
            logs.append(math.log(weight / variance**0.5) - (x - mean) ** 2 / (2 * variance))
            x0s.append((mean * sigma**2 + std**2 * x) / variance)
        x0 = (torch.stack(logs).softmax(0) * torch.stack(x0s)).sum(0)
        return (x - x0) / sigma

    def tails(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The share of the data, with noise of sigma, below x and above. 1 - share loses digits."""
        z = [(x - mean) / (std**2 + sigma**2) ** 0.5 for _, mean, std in self.components]
        weights = [weight for weight, _, _ in self.components]
        below = sum(w * torch.special.ndtr(z) for w, z in zip(weights, z))
        return below, sum(w * torch.special.ndtr(-z) for w, z in zip(weights, z))

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Where at sigma_next the exact solution is that passes x at sigma, to 1e-13 or so.

        Solutions can't cross, and they carry the distribution at sigma into that at sigma_next. So
        a solution stays at its quantile, which leaves a bisection. Needs a std above 0 for
        sigma_next 0.
        """
        below, above = self.tails(x, sigma)
        low, high = torch.full_like(x, -1e3), torch.full_like(x, 1e3)
        for _ in range(64):  # 2e3 / 2^64 is below the spacing of float64
            y = (low + high) / 2
            below_y, above_y = self.tails(y, sigma_next)
            too_low = torch.where(below < above, below_y < below, above_y > above)
            low, high = torch.where(too_low, y, low), torch.where(too_low, high, y)
        return (low + high) / 2


@dataclass(frozen=True)
class Pictures:
    """Data that is one of the `pictures` (K, C, h, w): x0 is their mean, weighted by likelihood.

    As the noise goes, the likelihood picks one of them: img2img with this model turns a drawing
    into the picture that is nearest to it, out of those that a network with no imagination has
    learned.
    """

    pictures: Tensor

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        pictures = self.pictures.to(x)
        distance = ((x[:, None] - pictures) ** 2).sum((2, 3, 4))  # (B, K)
        posterior = (-distance / (2 * sigma**2)).softmax(1)
        return (x - torch.einsum("bk,kchw->bchw", posterior, pictures)) / sigma


def as_unet(predict_eps: PredictEps) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An exact model behind the UNet's door, (x scaled to variance 1, t, context) -> eps."""

    def unet(x_in: Tensor, t: Tensor, context: Tensor) -> Tensor:
        sigma = t_to_sigma(t[0].item())
        return predict_eps(x_in * (sigma**2 + 1) ** 0.5, sigma)

    return unet
