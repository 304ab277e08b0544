"""Samplers without fresh noise that remember earlier predictions.

In all of them a step to sigma 0 returns x0, the clean latent as predicted.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import exp, expm1, log, prod

import numpy as np
from torch import Tensor

from minisd.samplers import PLMS_WEIGHTS, PredictEps, Step

Node = tuple[float, Tensor]  # lambda = -log(sigma), and the x0 predicted there


def uni_pc(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    order: int = 3,
    variant: str = "bh1",
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """UniPC, predicting x0, for an order of 1 to 3: Zhao et al. 2023 (arXiv 2302.04867).

    It predicts the next x with a formula of `order`. Once x0 is known there, it corrects the x that
    the next step starts from, with a formula one order higher; so the whole has order + 1. The
    paper's B(h) is h for the variant bh1, and e^h - 1 for bh2. AUTOMATIC1111 and ComfyUI lower the
    order in the last steps (lower_order_final), and end at sigma 0.001.
    """
    if order not in (1, 2, 3) or variant not in ("bh1", "bh2"):
        raise ValueError(f"uni_pc has order 1, 2, 3 and variant bh1, bh2, not {order}, {variant!r}")
    nodes: list[Node] = []  # those that the last step used, newest first
    base, sigma_last = x, sigmas[0]  # the last corrected x, and its level
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        node = (-log(sigma), x - sigma * eps)
        if nodes:
            base = unified_step(base, sigma_last, sigma, [*nodes, node], variant)
        steps_left = len(sigmas) - 1 - i
        nodes = [node, *nodes][: min(order, steps_left) if lower_order_final else order]
        if sigma_next == 0:
            x_next = node[1]
        else:
            x_next = unified_step(base, sigma, sigma_next, nodes, variant)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, sigma_last = x_next, sigma


def uni_pc_bh2(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    order: int = 3,
    lower_order_final: bool = False,
) -> Iterator[Step]:
    """uni_pc with B(h) = e^h - 1, under ComfyUI's name."""
    return uni_pc(predict_eps, x, sigmas, order, "bh2", lower_order_final)


def unified_step(
    x: Tensor, sigma: float, sigma_next: float, nodes: list[Node], variant: str
) -> Tensor:
    """From x at sigma to sigma_next, with the x0 at sigma first among the nodes.

    It is the predictor, or the corrector if the nodes include that of sigma_next. The weights a_m
    of (x0_m - x0) / r_m solve sum over m of a_m r_m^(n - 1) = n! h phi_(n + 1)(-h) / B for all n.
    A single weight is 1/2, as in the authors' program. B is h or 1 - e^-h, because x0 is predicted.
    """
    h = log(sigma / sigma_next)
    b = h if variant == "bh1" else -expm1(-h)
    (start, x0), *others = nodes
    r = np.array([(place - start) / h for place, _ in others])
    phi, factorial, right = expm1(-h) / -h, 1, []  # phi_1
    for n in range(1, len(others) + 1):
        factorial *= n
        phi = (phi - 1 / factorial) / -h  # phi_(n + 1)
        right.append(factorial * h * phi / b)
    weights = np.linalg.solve(r ** np.arange(len(r))[:, None], right) if len(r) > 1 else [0.5]
    x_next = sigma_next / sigma * x - expm1(-h) * x0
    for weight, ratio, (_, other) in zip(weights, r, others):
        x_next = x_next + b * float(weight / ratio) * (other - x0)
    return x_next


def deis(predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 3) -> Iterator[Step]:
    """DEIS: integrate the polynomial in log(sigma) through the last `order` slopes over the step.

    Zhang & Chen 2022 (arXiv 2204.13902), in the variable of diffusers' DEISMultistepScheduler.
    k_lms has the polynomial in sigma instead, and ComfyUI's deis in the time of another schedule.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"the order of deis must be 1, 2, 3 or 4, not {order}")
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:order]
        if sigma_next == 0:
            x_next = x - sigma * eps
        else:
            weights = deis_weights(sigmas, i, len(slopes))
            x_next = x + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


GAUSS_POINTS, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(16)  # on -1 to 1


def deis_weights(sigmas: list[float], i: int, order: int) -> list[float]:
    """Weights of the slopes at sigmas[i], sigmas[i - 1], ... in the step that starts at sigmas[i].

    Each is the integral over sigma of a Lagrange polynomial in log(sigma). With l = log(sigma), the
    integrand is polynomial(l) e^l, which Gauss-Legendre with 16 points integrates to rounding.
    """
    nodes = [log(sigmas[i - j]) for j in range(order)]
    half = (log(sigmas[i + 1]) - nodes[0]) / 2
    places = [nodes[0] + half * (1 + float(point)) for point in GAUSS_POINTS]

    def lagrange(j: int, place: float) -> float:
        others = [node for k, node in enumerate(nodes) if k != j]
        return prod((place - node) / (nodes[j] - node) for node in others)

    return [
        half * sum(float(w) * exp(p) * lagrange(j, p) for w, p in zip(GAUSS_WEIGHTS, places))
        for j in range(order)
    ]


def ipndm(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], max_order: int = 4
) -> Iterator[Step]:
    """Improved PNDM: average the last slopes as if all steps had one length.

    Zhang & Chen 2022 (arXiv 2204.13902), after Liu et al. 2022 (PNDM). It is `plms` without the
    Heun step at the start. The order is only 2, because no schedule here is even in sigma. With
    weights for uneven steps (ComfyUI's ipndm_v) it would be k_lms.
    """
    if max_order not in (1, 2, 3, 4):
        raise ValueError(f"the max_order of ipndm must be 1, 2, 3 or 4, not {max_order}")
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:max_order]
        slope = eps
        if len(slopes) > 1 and sigma_next > 0:
            weights = PLMS_WEIGHTS[len(slopes)]
            slope = sum(w * old for w, old in zip(weights, slopes, strict=True))
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def res_multistep(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Refined exponential solver, multistep: x0 is taken as linear in lambda over the step.

    Zhang et al. 2023 (arXiv 2308.02157); ComfyUI: res_multistep. x0's slope follows from
    this step's x0 and the last one's, and is integrated exactly (phi_2), where DPM-Solver++(2M)
    takes x0 halfway.
    """
    x0_last, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x0 = x - sigma * eps
        if sigma_next == 0:
            x_next = x0
        else:
            h = log(sigma / sigma_next)
            x_next = sigma_next / sigma * x - expm1(-h) * x0
            if x0_last is not None:
                x_next = x_next + (1 + expm1(-h) / h) * h / h_last * (x0 - x0_last)
            h_last = h
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, x0_last = x_next, x0


def euler_ge(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], gamma: float = 2.0
) -> Iterator[Step]:
    """Gradient estimation: Euler's step along gamma * eps + (1 - gamma) * eps of the last step.

    Permenter & Yuan 2023 (arXiv 2306.04848). Order 1; at gamma 1 it is Euler's method.
    """
    eps_last = None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = slope = predict_eps(x, sigma)
        if eps_last is not None and sigma_next > 0:
            slope = gamma * eps + (1 - gamma) * eps_last
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, eps_last = x_next, eps
