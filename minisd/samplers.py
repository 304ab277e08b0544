"""Samplers: from a noisy latent to a clean one, along a list of noise levels.

A sampler is a generator function `sampler(predict_eps, x, sigmas, **options)`:

    predict_eps(x, sigma) -> eps    the network's guess of the noise in x, in units of sigma
    x       (B, 4, h, w)            the latent at noise level sigmas[0]
    sigmas                          descending floats; as many steps as gaps between them

It yields a Step for each step, the last of which holds the result. Nothing else is state: the sampler's memory is
its local variables. To write your own, copy one of these; `img2img(..., sampler=yours)` takes any such function,
and gives it the image's own random stream if it has a parameter named `generator`.

Everything here is in sigma space, x = x0 + sigma * noise. The DDIM and DPM papers write x_paper = x / sqrt(1 + sigma^2).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PredictEps = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Step:
    """One step: from `x` at noise level `sigma` to `x_next` at `sigma_next`, along `eps` as predicted at x."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor
    eps: Tensor
    x_next: Tensor

    @property
    def x0(self) -> Tensor:
        """The clean latent as the network sees it from here: all of the predicted noise removed at once."""
        return self.x - self.sigma * self.eps


def k_lms(predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 4) -> Iterator[Step]:
    """Linear multistep: fit a polynomial through the last `order` slopes and integrate it over the step.

    The slope of x over sigma is eps. The first steps have fewer slopes to go by, and it is the history at hand that
    says so: img2img starts anywhere in a schedule. k-diffusion: sample_lms; Adams-Bashforth on an uneven grid.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"k_lms has orders 1 to 4, not {order}")
    history: list[Tensor] = []  # slopes, newest first
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, sigma)
        history = [eps, *history][:order]
        weights = lms_weights(sigmas, i, len(history))
        x_next = x + sum(w * slope for w, slope in zip(weights, history))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def lms_weights(sigmas: list[float], i: int, order: int) -> list[float]:
    """Weights of the slopes at sigmas[i], sigmas[i - 1], ... in the step from sigmas[i] to sigmas[i + 1].

    Each is the integral over the step of a Lagrange polynomial through `order` nodes. It is a cubic at most, for
    which the Gauss-Legendre rule of two points is exact: no quadrature library, no error.
    """
    middle, half = (sigmas[i + 1] + sigmas[i]) / 2, (sigmas[i + 1] - sigmas[i]) / 2
    nodes = [sigmas[i - j] for j in range(order)]

    def lagrange(j: int, sigma: float) -> float:
        product = 1.0
        for k, node in enumerate(nodes):
            if k != j:
                product *= (sigma - node) / (nodes[j] - node)
        return product

    gauss = (middle - half / 3**0.5, middle + half / 3**0.5)
    return [half * sum(lagrange(j, sigma) for sigma in gauss) for j in range(order)]


def ddim(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DDIM (Song et al. 2020, equation 12): with eta 0 Euler's method in sigma, with eta 1 as noisy as DDPM.

    Part of the noise that should remain at sigma_next is fresh (`up`), the rest is eps (`down`): equation 16 in
    sigma space. With eta > 0 it takes one normal of x's shape from `generator` for each step, the last one too.
    """
    if eta < 0:
        raise ValueError(f"eta must be 0 or more, not {eta}")
    if eta > 0 and generator is None:
        raise ValueError("ddim with eta > 0 draws noise: pass generator=torch.Generator().manual_seed(...)")
    for i, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:])):
        eps = predict_eps(x, sigma)
        up = min(sigma_next, eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5)
        down = (sigma_next**2 - up**2) ** 0.5
        x_next = x + (down - sigma) * eps
        if eta > 0:
            x_next = x_next + up * torch.randn(x.shape, generator=generator).to(x)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {"k_lms": k_lms, "ddim": ddim}
