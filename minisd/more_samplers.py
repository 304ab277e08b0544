"""The other samplers that the original program offered. What a sampler is stands in samplers.py.

Lambda in DPM-Solver's papers is -log(sigma), half the log of the signal-to-noise ratio (k-diffusion
calls it t). Those that call the network twice a step yield one Step, whose eps is the first call's.
None calls it at sigma 0, where no noise is left to predict: a step to there goes straight to x0.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import expm1, log

import torch
from torch import Tensor

from minisd.step import PredictEps, Step, ancestral_step, check_eta


def k_euler(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Euler's method along the slope eps. k-diffusion: sample_euler; it is DDIM with eta 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_euler_a(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """Euler to `down`, then fresh noise of `up`. k-diffusion: sample_euler_ancestral.

    It is DDIM with eta 1, but takes one normal of x's shape from `generator` only for a step that
    adds noise, and one to sigma 0 doesn't.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x_next = x + (down - sigma) * eps
        if up > 0:
            x_next = x_next + up * torch.randn(x.shape, generator=generator).to(x)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_heun(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Heun's method: the mean of the slopes at both ends of the step.

    k-diffusion: sample_heun, without churn; Karras et al. 2022, algorithm 1.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        if sigma_next > 0:
            eps_next = predict_eps(x_next, sigma_next)
            x_next = x + (sigma_next - sigma) * (eps + eps_next) / 2
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_dpm_2(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """The midpoint rule, with its midpoint halfway in lambda. k-diffusion: sample_dpm_2.

    Karras et al. 2022 call it DPM-Solver-2 (Lu et al. 2022, algorithm 1), and it differs from that
    only in integrating eps over sigma as a constant, not over lambda.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slope = eps if sigma_next == 0 else midpoint_eps(predict_eps, x, eps, sigma, sigma_next)
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_dpm_2_a(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """k_dpm_2 to `down`, then fresh noise of `up`, as in k_euler_a.

    k-diffusion: sample_dpm_2_ancestral.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        slope = eps if down == 0 else midpoint_eps(predict_eps, x, eps, sigma, down)
        x_next = x + (down - sigma) * slope
        if up > 0:
            x_next = x_next + up * torch.randn(x.shape, generator=generator).to(x)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def midpoint_eps(
    predict_eps: PredictEps, x: Tensor, eps: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """The slope halfway in lambda, at the geometric mean of the sigmas, by an Euler step."""
    middle = (sigma * sigma_next) ** 0.5
    return predict_eps(x + (middle - sigma) * eps, middle)


def k_dpmpp_2(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """DPM-Solver++(2M): hold over the step an x0 extrapolated from this step's and the last one's.

    k-diffusion: sample_dpmpp_2m; Lu et al. 2022 (DPM-Solver++), algorithm 2: h is the step in
    lambda, r the last step's over this one's. The first step, and one to sigma 0, take x0 as it is.
    """
    x0_last, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x0 = d = x - sigma * eps
        if sigma_next == 0:
            x_next = x0
        else:
            h = log(sigma / sigma_next)
            if x0_last is not None:
                r = h_last / h
                d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last
            x_next = sigma_next / sigma * x - expm1(-h) * d
            h_last = h
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, x0_last = x_next, x0


def k_dpmpp_2_a(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    """DPM-Solver++(2S), x0 taken halfway in lambda, to `down`; then fresh noise, as in k_euler_a.

    k-diffusion: sample_dpmpp_2s_ancestral; Lu et al. 2022 (DPM-Solver++), algorithm 1 with r = 1/2.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x0 = x - sigma * eps
        down, up = ancestral_step(sigma, sigma_next, eta)
        if down == 0:
            x_next = x0
        else:
            h = log(sigma / down)
            middle = (sigma * down) ** 0.5
            u = middle / sigma * x - expm1(-h / 2) * x0
            x0_middle = u - middle * predict_eps(u, middle)
            x_next = down / sigma * x - expm1(-h) * x0_middle
        if up > 0:
            x_next = x_next + up * torch.randn(x.shape, generator=generator).to(x)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


# Adams-Bashforth on an even grid, newest slope first, by the number of slopes there are.
PLMS_WEIGHTS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Pseudo linear multistep: average the last four slopes as if the grid were even in sigma.

    CompVis: ldm/models/diffusion/plms.py; Liu et al. 2022 (PNDM). The step along the average is
    DDIM's, the first one is Heun's ("pseudo improved Euler") and makes two calls. Order 2 only, as
    the paper says: no grid here is even.
    """
    history: list[Tensor] = []  # slopes, newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        history = [eps, *history][:4]
        slope = eps
        if len(history) > 1:
            slope = sum(w * old for w, old in zip(PLMS_WEIGHTS[len(history)], history))
        elif sigma_next > 0:
            slope = (eps + predict_eps(x + (sigma_next - sigma) * eps, sigma_next)) / 2
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
