"""Samplers that only another program has: its own order of calls, or its own mistake.

They have the form of minisd/samplers.py. All other samplers of the programs are minisd's.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import expm1, log

from torch import Tensor

from minisd.more_samplers.multistep import Node, unified_step
from minisd.samplers import (
    PLMS_WEIGHTS,
    PredictEps,
    Rng,
    Step,
    ancestral_step,
    fresh_noise,
    k_lms,
    lms_weights,
)


def lms_to_x0(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 4
) -> Iterator[Step]:
    """ComfyUI's LMS: a step to sigma 0 gives x0, where k_lms extrapolates."""
    for step in k_lms(predict_eps, x, sigmas, order):
        if step.sigma_next == 0:
            step = Step(step.i, step.sigma, 0.0, step.x, step.eps, step.x0)  # noqa: PLW2901
        yield step


def lms_by_position(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], before: list[float]
) -> Iterator[Step]:
    """diffusers' LMS: the order follows from the place in the whole schedule (wrong in img2img).

    before: the levels that img2img skips. The first steps get the weights of up to four slopes, but
    have fewer, and the further weights are dropped.
    """
    levels, slopes = [*before, *sigmas], []  # slopes: newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:4]
        place = len(before) + i
        weights = lms_weights(levels, place, min(place + 1, 4))
        x_next = x + sum(w * slope for w, slope in zip(weights, slopes))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def pndm(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """diffusers' PNDM without Runge-Kutta steps: one Step for each call, counted from the start.

    Call 1 repeats the first step with the mean of two slopes. The whole schedule has its second
    level twice for that. img2img cuts the double entry off, so from call 2 on x is one level
    noisier than the network expects (wrong, and spoken as it is).
    """
    slopes: list[Tensor] = []  # newest first
    first = x
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = slope = predict_eps(x, sigma)
        start, low, high = x, sigma_next, sigma
        if i == 1:  # from the first level to this one again, with the mean of both slopes
            slope, start, low, high = (eps + slopes[0]) / 2, first, sigma, sigmas[0]
        else:
            slopes = [eps, *slopes][:4]
            if len(slopes) > 1:
                weights = PLMS_WEIGHTS[len(slopes)]
                slope = sum(w * old for w, old in zip(weights, slopes, strict=True))
        x_next = start + (low - high) * slope
        yield Step(i, sigma, low, x, eps, x_next)
        # x / sqrt(1 + sigma^2) goes on as it is, and counts as a state of the next call's level.
        x = x_next * ((1 + sigma_next**2) / (1 + low**2)) ** 0.5


def heun_in_halves(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """k_heun with a Step for each call, as diffusers counts: Euler's step, then its correction."""
    i = 0
    for sigma, sigma_next in pairwise(sigmas):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        if sigma_next > 0:
            eps_next = predict_eps(x_next, sigma_next)
            corrected = x + (sigma_next - sigma) * (eps + eps_next) / 2
            i += 1
            yield Step(i, sigma_next, sigma_next, x_next, eps_next, corrected)
            x_next = corrected
        x, i = x_next, i + 1


def euler_a_always(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], generator: Rng = None
) -> Iterator[Step]:
    """k_euler_a that draws for the last step too, as diffusers does; the draw is not used."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, 1.0)
        noise = fresh_noise(x, generator, sigma, sigma_next)
        x_next = x + (down - sigma) * eps + up * noise
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def dpm_solver_pp(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """CompVis's DPM-Solver++(2M): with fewer than 15 steps the last one has order 1."""
    x0_last, h_last = None, 0.0
    n = len(sigmas) - 1
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x0 = d = x - sigma * eps
        h = log(sigma / sigma_next)
        if x0_last is not None and not (n < 15 and i == n - 1):
            d = x0 + h / (2 * h_last) * (x0 - x0_last)
        x_next = sigma_next / sigma * x - expm1(-h) * d
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, x0_last, h_last = x_next, x0, h


def uni_pc_corrected(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    order: int = 3,
    variant: str = "bh1",
) -> Iterator[Step]:
    """uni_pc as AUTOMATIC1111 and ComfyUI count it: a Step goes from a corrected x to the next.

    The network is called at the predicted x, and Step.eps is its prediction there. The order falls
    in the last steps. The last x is not corrected.
    """
    eps = predict_eps(x, sigmas[0])
    nodes: list[Node] = [(-log(sigmas[0]), x - sigmas[0] * eps)]  # newest first
    steps = len(sigmas) - 1
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        nodes = nodes[: min(order, steps - i)]
        x_next, eps_next = unified_step(x, sigma, sigma_next, nodes, variant), eps
        if i + 1 < steps:
            eps_next = predict_eps(x_next, sigma_next)
            node = (-log(sigma_next), x_next - sigma_next * eps_next)
            x_next = unified_step(x, sigma, sigma_next, [*nodes, node], variant)
            nodes = [node, *nodes]
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, eps = x_next, eps_next


def plms_without_memory(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """InvokeAI's PLMS in img2img: its history stays empty, so every step is plms's first one."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        eps_next = predict_eps(x + (sigma_next - sigma) * eps, sigma_next)
        x_next = x + (sigma_next - sigma) * (eps + eps_next) / 2
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next
