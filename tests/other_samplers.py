"""Samplers of other kinds than minisd's, written from their papers: the certificate's controls.

A predictor-corrector predicts the next x with an explicit formula, and corrects x with an implicit
formula once eps is known there.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import ceil, expm1, log

import numpy as np
import torch
from torch import Tensor

from minisd.samplers import PredictEps, Rng, Step, check_eta, fresh_noise, lms_weights

Node = tuple[float, Tensor]  # lambda = -log(sigma), and the x0 predicted there


def unipc(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 2
) -> Iterator[Step]:
    """UniPC with B(h) = e^h - 1, predicting x0: Zhao et al. 2023, algorithms 1 and 2.

    One call a step: the corrector uses the eps of the predicted x. The predictor's order is
    `order`, and the corrector's is one higher.
    """
    nodes: list[Node] = []  # newest first
    base, sigma_last = x, sigmas[0]  # the last corrected x, and its level
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        node = (-log(sigma), x - sigma * eps)
        if nodes:
            base = unified_step(base, sigma_last, sigma, [*nodes, node])
        nodes = [node, *nodes][:order]
        x_next = node[1] if sigma_next == 0 else unified_step(base, sigma, sigma_next, nodes)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, sigma_last = x_next, sigma


def unified_step(x: Tensor, sigma: float, sigma_next: float, nodes: list[Node]) -> Tensor:
    """From x at sigma to sigma_next, with the x0 at sigma first among the nodes.

    It is the predictor, or the corrector if the nodes include that of sigma_next. The weights a_m
    of (x0_m - x0) / r_m solve, for n = 1, 2, ...,

        sum over m of a_m r_m^(n - 1) = n! h phi_(n + 1)(-h) / B,  B = 1 - e^-h

    A single weight is 1/2, as the paper allows.
    """
    h = log(sigma / sigma_next)
    (start, x0), *others = nodes
    r = np.array([(place - start) / h for place, _ in others])
    phi, factorial, right = expm1(-h) / -h, 1, []  # phi_1
    for n in range(1, len(others) + 1):
        factorial *= n
        phi = (phi - 1 / factorial) / -h  # phi_(n + 1)
        right.append(factorial * h * phi / -expm1(-h))
    weights = np.linalg.solve(r ** np.arange(len(r))[:, None], right) if len(r) > 1 else [0.5]
    x_next = sigma_next / sigma * x - expm1(-h) * x0
    for weight, ratio, (_, other) in zip(weights, r, others):
        x_next = x_next - expm1(-h) * float(weight / ratio) * (other - x0)
    return x_next


def trapezoid(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Euler's step as predictor, the trapezoidal rule as corrector, one call a step: order 2."""
    base, slope_last, h_last = x, None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        if slope_last is not None:
            base = base + h_last * (eps + slope_last) / 2
        h_last, slope_last = sigma_next - sigma, eps
        x_next = base + h_last * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def adams(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 3, repeat: bool = False
) -> Iterator[Step]:
    """Adams-Bashforth of `order` as predictor, Adams-Moulton one order higher as corrector.

    With `repeat`, eps is predicted again at the corrected x, so that x_next is the corrected one.
    Otherwise the next step begins with the correction.
    """
    slopes: list[Tensor] = []  # newest first
    base = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        if slopes and not repeat:
            base = base + moulton(sigmas, i - 1, [eps, *slopes])
        slopes = [eps, *slopes][:order]
        weights = lms_weights(sigmas, i, len(slopes))
        predicted = base + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        x_next = predicted
        if repeat and sigma_next > 0:
            x_next = base + moulton(sigmas, i, [predict_eps(predicted, sigma_next), *slopes])
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
        base = x if repeat else base


def moulton(sigmas: list[float], i: int, slopes: list[Tensor]) -> Tensor:
    """The integral over step i of the polynomial through the slopes, from that at its end back."""
    nodes = np.array([sigmas[i + 1 - j] for j in range(len(slopes))])
    length, middle = sigmas[i + 1] - sigmas[i], (sigmas[i + 1] + sigmas[i]) / 2
    nodes = (nodes - middle) / length
    powers = np.arange(len(nodes))
    moments = (0.5 ** (powers + 1) - (-0.5) ** (powers + 1)) / (powers + 1)
    weights = length * np.linalg.solve(nodes ** powers[:, None], moments)
    return sum((float(w) * slope for w, slope in zip(weights, slopes)), torch.zeros(()))


def restart(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    low: float = 0.3,
    high: float = 1.0,
    generator: Rng = None,
) -> Iterator[Step]:
    """Euler's method that goes from `low` back to `high` once: Xu et al. 2023, Restart sampling.

    The step that reaches `low` adds noise up to `high`, and comes down again in steps of about its
    own length. All of this is one Step.
    """
    check_eta(1.0, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        if sigma > low >= sigma_next > 0:
            x_next = x_next + (high**2 - sigma_next**2) ** 0.5 * fresh_noise(x, generator)
            count = ceil(log(high / sigma_next) / log(sigma / sigma_next))
            levels = [high * (sigma_next / high) ** (k / count) for k in range(count)]
            for a, b in pairwise([*levels, sigma_next]):
                x_next = x_next + (b - a) * predict_eps(x_next, a)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
