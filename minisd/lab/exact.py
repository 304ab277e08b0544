"""Models that are known exactly, to measure samplers with: each is a `predict_eps`.

If the distribution of the data is known, so is the best possible network. It predicts the mean of
the posterior, x0 = E[x0 | x, sigma], and eps = (x - x0) / sigma. Samplers follow dx/dsigma = eps
(Karras et al. 2022, equation 1, with sigma for time). Its solution is known too if the elements of
the data are independent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from minisd.samplers import PredictEps
from minisd.schedule import t_to_sigma


@dataclass(frozen=True)
class Mixture:
    """Data with independent elements, each drawn from a mixture of normals (weight, mean, std).

    With one component the data is Gaussian, and eps is linear in x. With a std of 0 it is a single
    point, for which every consistent sampler is exact.
    """

    components: tuple[tuple[float, float, float], ...]

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        """eps at x. Each component's x0 follows from Bayes' rule, weighted by its likelihood."""
        logs, x0s = [], []
        for weight, mean, std in self.components:
            variance = std**2 + sigma**2  # of x, if this component made it
            logs.append(math.log(weight / variance**0.5) - (x - mean) ** 2 / (2 * variance))
            x0s.append((mean * sigma**2 + std**2 * x) / variance)
        x0 = (torch.stack(logs).softmax(0) * torch.stack(x0s)).sum(0)
        return (x - x0) / sigma

    def tails(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """The shares of the data, with noise of sigma, that lie below x and above x.

        Both are computed, because 1 - share would lose digits.
        """
        z_scores = [(x - mean) / (std**2 + sigma**2) ** 0.5 for _, mean, std in self.components]
        weights = [weight for weight, _, _ in self.components]
        below = sum(w * torch.special.ndtr(z) for w, z in zip(weights, z_scores))
        above = sum(w * torch.special.ndtr(-z) for w, z in zip(weights, z_scores))
        return torch.as_tensor(below), torch.as_tensor(above)

    def flow(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The point at sigma_next of the exact solution through x at sigma, to about 1e-13.

        Solutions cannot cross, and they carry the distribution at sigma to the one at sigma_next.
        So a solution keeps its quantile, and bisection finds the point with that quantile. At
        sigma_next 0 every std must be above 0.
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

    As the noise falls, the likelihood comes to favour one of them. So img2img with this model turns
    a drawing into the nearest of the pictures.
    """

    pictures: Tensor

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        pictures = self.pictures.to(x)
        distance = ((x[:, None] - pictures) ** 2).sum((2, 3, 4))  # (B, K)
        posterior = (-distance / (2 * sigma**2)).softmax(1)
        return (x - torch.einsum("bk,kchw->bchw", posterior, pictures)) / sigma


def as_unet(predict_eps: PredictEps) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An exact model with the UNet's arguments: (x scaled to variance 1, t, context) -> eps."""

    def unet(x_in: Tensor, t: Tensor, context: Tensor) -> Tensor:
        sigma = t_to_sigma(t[0].item())
        return predict_eps(x_in * (sigma**2 + 1) ** 0.5, sigma)

    return unet


def as_sd(predict_eps: PredictEps) -> SimpleNamespace:
    """An exact model as an `sd`, with all that img2img uses if it is given a latent.

    It cannot encode. Its decoder returns a blank picture.
    """
    return SimpleNamespace(
        unet=as_unet(predict_eps),
        vae=SimpleNamespace(factor=8, decode=lambda latent: torch.zeros(1, 3, 64, 64)),
        text_states=lambda prompt: torch.zeros(1, 77, 1),
        multiple=64,
        device=torch.device("cpu"),
    )
