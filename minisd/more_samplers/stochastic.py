"""Samplers that add fresh noise, beyond those of the core.

None adds noise in a step to sigma 0: that step returns x0, the clean latent as predicted. With
eta 0 the solvers of the reverse SDE solve its ODE instead, and draw nothing.

The noise comes from `fresh_noise`: new draws for each step, or the step's part of one Brownian path
(minisd/more_samplers/brownian.py), as in other programs.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import exp, expm1, log

from torch import Tensor

from minisd.more_samplers.multistep import GAUSS_POINTS, GAUSS_WEIGHTS
from minisd.samplers import (
    PredictEps,
    Rng,
    Step,
    ancestral_step,
    check_eta,
    fresh_noise,
    k_heun,
)


def dpmpp_sde(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 1.0, generator: Rng = None
) -> Iterator[Step]:
    """DPM-Solver++ for the SDE, two stages: x0 halfway in lambda, after noise of its own.

    k-diffusion: sample_dpmpp_sde with r = 1/2. With eta 0 it is DPM-Solver++(2S), k_dpmpp_2_a's
    step (Lu et al. 2022, DPM-Solver++, algorithm 1). The noise at the middle is independent of the
    step's own, so the distribution has order 1 only.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x0 = x - sigma * eps
        if sigma_next > 0:
            middle = (sigma * sigma_next) ** 0.5
            down, up = ancestral_step(sigma, middle, eta)
            u = down / sigma * x + (1 - down / sigma) * x0
            if up > 0:
                u = u + up * fresh_noise(x, generator, sigma, middle)
            x0_middle = u - middle * predict_eps(u, middle)
            down, up = ancestral_step(sigma, sigma_next, eta)
            x_next = down / sigma * x + (1 - down / sigma) * x0_middle
            if up > 0:
                x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def dpmpp_2m_sde(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    eta: float = 1.0,
    solver: str = "midpoint",
    generator: Rng = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M) for the SDE; with eta 0 it is DPM-Solver++(2M) itself.

    k-diffusion: sample_dpmpp_2m_sde; Lu et al. 2022 (DPM-Solver++), their solvers of the SDE.
    h is the step's length in lambda, and l = (1 + eta) h. For constant x0 the exact solution is
    e^-l x + (1 - e^-l) x0 + noise. A term for x0's slope is added: its value at the middle of the
    step (solver midpoint), or its exact integral (solver heun).
    """
    check_eta(eta, generator)
    if solver not in ("midpoint", "heun"):
        raise ValueError(f"the solver of dpmpp_2m_sde must be midpoint or heun, not {solver!r}")
    x0_last, h_last = None, 0.0
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x0 = x - sigma * eps
        if sigma_next > 0:
            h = log(sigma / sigma_next)
            length = (1 + eta) * h
            x_next = exp(-length) * x - expm1(-length) * x0
            if x0_last is not None:
                share = -expm1(-length) / 2 if solver == "midpoint" else 1 + expm1(-length) / length
                x_next = x_next + share * h / h_last * (x0 - x0_last)
            if eta > 0:
                up = sigma_next * (-expm1(-2 * eta * h)) ** 0.5
                x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
            h_last = h
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, x0_last = x_next, x0


def dpmpp_3m_sde(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 1.0, generator: Rng = None
) -> Iterator[Step]:
    """DPM-Solver++(3M) for the SDE: dpmpp_2m_sde (heun) with a term for the curvature of x0.

    k-diffusion: sample_dpmpp_3m_sde. There `curvature` is half of the second derivative, and phi_3
    belongs to the whole of it. So the order is 2, not 3; minisd keeps the field's formula.
    """
    check_eta(eta, generator)
    x0s: list[Tensor] = []  # those of the last steps, newest first
    hs: list[float] = []  # the lengths of the steps between them in lambda
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x0 = x - sigma * eps
        x0s = [x0, *x0s][:3]
        if sigma_next > 0:
            h = log(sigma / sigma_next)
            length = (1 + eta) * h
            phi_2 = 1 + expm1(-length) / length
            phi_3 = phi_2 / length - 0.5
            x_next = exp(-length) * x - expm1(-length) * x0
            r = [h_old / h for h_old in hs]
            slopes = [(a - b) / ratio for a, b, ratio in zip(x0s, x0s[1:], r)]
            if len(slopes) == 1:
                x_next = x_next + phi_2 * slopes[0]
            elif len(slopes) == 2:
                curvature = (slopes[0] - slopes[1]) / (r[0] + r[1])
                x_next = x_next + phi_2 * (slopes[0] + r[0] * curvature) - phi_3 * curvature
            if eta > 0:
                up = sigma_next * (-expm1(-2 * eta * h)) ** 0.5
                x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
            hs = [h, *hs][:2]
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def er_sde(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    stages: int = 3,
    eta: float = 1.0,
    generator: Rng = None,
) -> Iterator[Step]:
    """ER-SDE-Solver-3: Cui et al. 2023 (arXiv 2309.06169); ComfyUI: er_sde.

    It solves the reverse SDE with phi(sigma) = sigma (e^(sigma^0.3) + 10)^eta. Eta 1 is the
    paper's best, and eta 0 is the ODE. x0 is taken as constant (stages 1), or as a polynomial in
    sigma by divided differences (2, 3). The slope is that of the middle of the last step, so the
    order is 2 at most.
    ComfyUI sums the integrals of 1 / phi at 200 points; here they are exact. The results differ by
    about 0.001, in proportion to the distance of the points.
    """
    check_eta(eta, generator)
    if stages not in (1, 2, 3):
        raise ValueError(f"the stages of er_sde must be 1, 2 or 3, not {stages}")

    def phi(sigma: float) -> float:
        return sigma * (exp(sigma**0.3) + 10) ** eta

    x0_last, slope_last = None, None
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x0 = x - sigma * eps
        if sigma_next > 0:
            ratio = phi(sigma_next) / phi(sigma)
            x_next = ratio * x + (1 - ratio) * x0
            change = sigma_next - sigma
            # The integrals over sigma of 1 / phi and (sigma - start) / phi, with dsigma = sigma dl.
            half = log(sigma / sigma_next) / 2
            levels = [sigma_next * exp(half * (1 + float(point))) for point in GAUSS_POINTS]
            shares = [half * w * s / phi(s) for w, s in zip(GAUSS_WEIGHTS.tolist(), levels)]
            if stages > 1 and x0_last is not None:
                slope = (x0 - x0_last) / (sigma - sigmas[i - 1])
                x_next = x_next + (change + phi(sigma_next) * sum(shares)) * slope
                if stages > 2 and slope_last is not None:
                    curvature = 2 * (slope - slope_last) / (sigma - sigmas[i - 2])
                    moment = sum(share * (s - sigma) for share, s in zip(shares, levels))
                    x_next = x_next + (change**2 / 2 + phi(sigma_next) * moment) * curvature
                slope_last = slope
            if eta > 0:
                up = max(0.0, sigma_next**2 - (sigma * ratio) ** 2) ** 0.5
                x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x, x0_last = x_next, x0


def lcm(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], generator: Rng = None
) -> Iterator[Step]:
    """Latent consistency models: replace all noise by fresh noise of the next level.

    Luo et al. 2023 (arXiv 2310.04378); ComfyUI: sample_lcm. For networks trained to predict the end
    of the ODE's solution in one call, in 2 to 8 steps. With any other network detail is lost, and
    more steps do not bring it back: the order is 0.
    """
    check_eta(1.0, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x - sigma * eps
        if sigma_next > 0:
            x_next = x_next + sigma_next * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def restart(
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    low: float = 0.1,
    high: float = 2.0,
    times: int = 1,
    generator: Rng = None,
) -> Iterator[Step]:
    """Heun's method that adds noise at `low`, goes back up to `high`, and repeats those steps.

    Xu et al. 2023 (arXiv 2306.14878); AUTOMATIC1111: restart_sampler, which takes steps off the
    schedule to pay for the repeated ones. The Step that arrives at the lowest level above `low`
    includes all repetitions. A run that starts below `high` goes back up to its own start only.
    """
    if times < 0 or not 0 < low < high:
        raise ValueError(f"restart needs 0 < low < high and times >= 0, not {low}, {high}, {times}")
    check_eta(float(times), generator)
    levels = [sigma for sigma in sigmas if low <= sigma <= high]
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        (step,) = k_heun(predict_eps, x, [sigma, sigma_next])
        x_next = step.x_next
        if len(levels) > 1 and sigma_next == levels[-1]:
            for _ in range(times):
                up = (levels[0] ** 2 - sigma_next**2) ** 0.5
                noised = x_next + up * fresh_noise(x, generator, levels[0], sigma_next)
                *_, last = k_heun(predict_eps, noised, levels)
                x_next = last.x_next
        yield Step(i, sigma, sigma_next, x, step.eps, x_next)
        x = x_next
