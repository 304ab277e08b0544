"""Samplers of other kinds than minisd's, written from their papers: the certificate's controls.

All of them are correct. A predictor-corrector predicts the next x with an explicit formula, and
corrects x with an implicit formula once eps is known there.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from math import ceil, expm1, log, sqrt

import numpy as np
from torch import Tensor

from minisd.lab import Theory
from minisd.samplers import PredictEps, Rng, Step, fresh_noise


def unipc(predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 2):
    """UniPC, B(h) = e^h - 1, predicting x0 (Zhao et al. 2023, algorithms 1 and 2, appendix E).

    One call a step: the corrector uses the eps of the predicted x. UniP-p has order p, and UniC-p
    raises it to p + 1.
    """
    past: list[tuple[float, Tensor]] = []  # (lambda, x0) of the steps so far, newest first
    base, sigma_last = x, sigmas[0]  # the last corrected x, and its level
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        here = (-log(sigma), x - sigma * eps)
        if past:
            base = unified_step(base, sigma_last, sigma, past[:order], here)
        past = [here, *past][:order]
        if sigma_next == 0:
            x_next = here[1]
        else:
            x_next = unified_step(base, sigma, sigma_next, past)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, sigma_last = x_next, sigma


def unified_step(
    x: Tensor,
    sigma: float,
    sigma_next: float,
    past: list[tuple[float, Tensor]],
    end: tuple[float, Tensor] | None = None,
) -> Tensor:
    """From x at sigma to sigma_next; with x0 at the `end` of the step, it is the corrector.

    Equation 3 of the paper: the weights a of the differences D_m / r_m solve, for n = 1, 2, ...,
    sum of a_m r_m^(n - 1) = n! phi_(n + 1) h / B.
    """
    h = log(sigma / sigma_next)
    start, x0 = past[0]
    nodes = past[1:] if end is None else [*past[1:], end]
    r = np.array([(place - start) / h for place, _ in nodes])
    phi = [expm1(-h) / -h]  # phi_1(-h), and phi_(k + 1)(z) = (phi_k(z) - 1 / k!) / z
    factorial = 1
    right = []
    for n in range(1, len(nodes) + 1):
        phi.append((phi[-1] - 1 / factorial) / -h)
        factorial *= n
        right.append(factorial * phi[-1] * -h / expm1(-h))
    weights = np.linalg.solve(r ** np.arange(len(nodes))[:, None], right) if nodes else []
    x_next = sigma_next / sigma * x - expm1(-h) * x0
    for weight, ratio, (_, other) in zip(weights, r, nodes, strict=True):
        x_next = x_next - expm1(-h) * float(weight / ratio) * (other - x0)
    return x_next
