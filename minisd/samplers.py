"""Samplers: from a noisy latent to a clean one, along a list of noise levels.

A sampler is a generator function `sampler(predict_eps, x, sigmas, **options)`:

    predict_eps(x, sigma) -> eps    the network's guess of the noise in x, in units of sigma
    x       (B, 4, h, w)            the latent at noise level sigmas[0]
    sigmas                          descending floats; as many steps as gaps between them

It yields a Step (step.py) for each step, the last of which holds the result. Nothing else is state:
the sampler's memory is its local variables. To write your own, copy one of these;
`img2img(..., sampler=yours)` takes any such function, and gives it the image's own random stream if
it has a parameter named `generator`. docs/write-your-own-sampler.md shows how to test it.

All is in sigma space, x = x0 + sigma * noise. The papers of DDIM, PLMS and DPM-Solver write
x_paper = x / sqrt(1 + sigma^2). Here are the two that minisd uses by itself; the rest of SAMPLERS
is in more_samplers.py.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from minisd.more_samplers import (
    k_dpm_2,
    k_dpm_2_a,
    k_dpmpp_2,
    k_dpmpp_2_a,
    k_euler,
    k_euler_a,
    k_heun,
    plms,
)
from minisd.step import PredictEps, Step, ancestral_step, check_eta


def k_lms(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    order: int = 4,
    max_gain: float | None = None,
) -> Iterator[Step]:
    """Linear multistep: integrate the polynomial through the last `order` slopes over the step.

    The slope of x over sigma is eps. The first steps have fewer slopes to go by, and it is the
    history at hand that says so: img2img starts anywhere in a schedule. k-diffusion: sample_lms;
    Adams-Bashforth on an uneven grid. max_gain guards it against what short runs do to the
    network's errors: 1.1 is a good value, and None, as in the original, no guard (guarded_orders).
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"k_lms has orders 1 to 4, not {order}")
    orders = guarded_orders(sigmas, order, max_gain) if max_gain else [order] * len(sigmas)
    history: list[Tensor] = []  # slopes, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        history = [eps, *history][:order]
        weights = lms_weights(sigmas, i, min(len(history), orders[i]))
        x_next = x + sum(w * slope for w, slope in zip(weights, history))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def lms_weights(sigmas: list[float], i: int, order: int) -> list[float]:
    """Weights of the slopes at sigmas[i], sigmas[i - 1], ... in the step from sigmas[i] on.

    Each is the integral over the step of a Lagrange polynomial through `order` nodes. It is a cubic
    at most, for which the Gauss-Legendre rule of two points is exact: no library, no error.
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


def guarded_orders(sigmas: list[float], order: int, max_gain: float) -> list[int]:
    """For each step, the highest order up to `order` at which the noise gain stays within max_gain.

    The result of a run is x + sum of W * eps over its calls, where W sums the weights that a call's
    eps has in all steps. They add up to -sigmas[0], and where some are positive the others are too
    large: noise gain = sum |W| / sigmas[0] says by how much errors of the network are amplified.
    k_lms of order 4 has 6.5 at 50 steps and strength 0.1 on the model grid, 27 on Karras', because
    the last steps are long beside those before them and a cubic is continued far beyond its nodes.

    Order 1 adds nothing to the gain from wherever it takes over, so max_gain >= 1 can be kept.
    """
    if max_gain < 1:
        raise ValueError(f"max_gain must be 1 (plain Euler) or more, not {max_gain}")
    totals = [0.0] * len(sigmas)  # W of each call, so far
    orders = []
    for i, sigma_next in enumerate(sigmas[1:]):
        for candidate in range(min(order, i + 1), 0, -1):
            trial = totals.copy()
            for j, weight in enumerate(lms_weights(sigmas, i, candidate)):
                trial[i - j] += weight
            gain_at_end = (sum(map(abs, trial)) + sigma_next) / sigmas[0]  # if order 1 did the rest
            if candidate == 1 or gain_at_end <= max_gain:
                break
        totals = trial
        orders.append(candidate)
    return orders


def ddim(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 0.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DDIM (Song et al. 2020, equation 12): with eta 0 Euler in sigma, with eta 1 as noisy as DDPM.

    Part of the noise that should remain at sigma_next is fresh (`up`), the rest is eps (`down`).
    With eta > 0 it takes one normal of x's shape from `generator` for each step, the last one too.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x_next = x + (down - sigma) * eps
        if eta > 0:
            x_next = x_next + up * torch.randn(x.shape, generator=generator).to(x)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "k_lms": k_lms,
    "ddim": ddim,
    "plms": plms,
    "k_euler": k_euler,
    "k_euler_a": k_euler_a,
    "k_heun": k_heun,
    "k_dpm_2": k_dpm_2,
    "k_dpm_2_a": k_dpm_2_a,
    "k_dpmpp_2": k_dpmpp_2,
    "k_dpmpp_2_a": k_dpmpp_2_a,
}
