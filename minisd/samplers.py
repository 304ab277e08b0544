"""Samplers: from a noisy latent to a clean one, down a list of noise levels.

A sampler is a generator function `sampler(predict_eps, x, sigmas, **options)`:

    predict_eps(x, sigma) -> eps    the network's prediction of the noise in x (B, 4, h, w)
    x       (B, 4, h, w)            the latent at noise level sigmas[0]
    sigmas  descending floats       one step for each pair of neighbours

It yields a Step for each step; the last Step holds the result. All memory is in local variables.
The order of a method with memory follows from the slopes it has, never from the step's number,
because img2img can start anywhere in a schedule. A wrong argument raises at the first `next()`.

To write your own, copy one of these: `img2img(..., sampler=yours)` takes any such function. If it
has a parameter named `generator`, it gets the generator that drew the image's first noise, for
`fresh_noise`. docs/write-your-own-sampler.md shows how to test it.

In sigma space, x = x0 + sigma * noise, the slope of x over sigma is eps (Karras et al. 2022,
equation 1). The papers of DDIM and DPM-Solver use x / sqrt(1 + sigma^2) and lambda = -log(sigma).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import expm1, log
from typing import Any, NamedTuple

import torch
from torch import Tensor

PredictEps = Callable[[Tensor, float], Tensor]
Sampler = Callable[..., Iterator["Step"]]
# A list holds one generator for each image; a function is (x, sigma, sigma_next) -> noise.
Rng = torch.Generator | Sequence[torch.Generator] | Callable[[Tensor, float, float], Tensor] | None


@dataclass(frozen=True)
class Step:
    """From `x` at noise level `sigma` to `x_next` at `sigma_next`; `eps` was predicted at x."""

    i: int
    sigma: float
    sigma_next: float
    x: Tensor  # (B, 4, h, w)
    eps: Tensor
    x_next: Tensor

    @property
    def x0(self) -> Tensor:
        """The clean latent as predicted from here: x with all of the predicted noise removed."""
        return self.x - self.sigma * self.eps


def k_euler(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Euler's method: follow the slope eps. k-diffusion: sample_euler; equals DDIM with eta 0."""
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        x_next = x + (sigma_next - sigma) * eps
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_lms(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], order: int = 4
) -> Iterator[Step]:
    """Linear multistep: integrate the polynomial through the last `order` slopes over the step.

    Adams-Bashforth on an uneven schedule. k-diffusion: sample_lms. Few steps at low strength
    amplify the network's errors; `k_lms_guarded` limits that.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"the order of k_lms must be 1, 2, 3 or 4, not {order}")
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:order]
        weights = lms_weights(sigmas, i, len(slopes))
        x_next = x + sum(w * slope for w, slope in zip(weights, slopes, strict=True))
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def lms_weights(sigmas: list[float], i: int, order: int) -> list[float]:
    """Weights of the slopes at sigmas[i], sigmas[i - 1], ... in the step that starts at sigmas[i].

    Each weight is the integral over the step of a Lagrange polynomial through `order` points. Such
    a polynomial is at most a cubic, and Gauss-Legendre with two points integrates cubics exactly.
    """
    middle, half = (sigmas[i + 1] + sigmas[i]) / 2, (sigmas[i + 1] - sigmas[i]) / 2
    nodes = [sigmas[i - j] for j in range(order)]

    def lagrange(j: int, sigma: float) -> float:
        product = 1.0
        for k, node in enumerate(nodes):
            if k != j:
                product *= (sigma - node) / (nodes[j] - node)
        return product

    gauss_points = (middle - half / 3**0.5, middle + half / 3**0.5)
    return [half * sum(lagrange(j, sigma) for sigma in gauss_points) for j in range(order)]


# ---- samplers that add fresh noise at each step --------------------------------------------------


def ancestral_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up): remove noise until `down` is left, then add fresh noise of `up`.

    The two add up to the next level: down^2 + up^2 = sigma_next^2. DDIM, Song et al. 2020, equation
    16, in sigma space; k-diffusion: get_ancestral_step. With eta 1, `up` is the standard deviation
    of DDPM's posterior; with eta 0 it is 0.
    """
    up = min(sigma_next, eta * sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5)
    return (sigma_next**2 - up**2) ** 0.5, up


def fresh_noise(x: Tensor, generator: Rng, sigma: float = 0, sigma_next: float = 0) -> Tensor:
    """Normal noise of x's shape, drawn on the CPU; for a list of generators, each image's own."""
    if callable(generator):
        return generator(x, sigma, sigma_next)
    if generator is None:  # torch would take the global one, and no seed would give the noise again
        raise ValueError("fresh noise needs a generator, such as torch.Generator().manual_seed(1)")
    if isinstance(generator, Sequence):
        return torch.cat([torch.randn(1, *x.shape[1:], generator=g) for g in generator]).to(x)
    return torch.randn(x.shape, generator=generator).to(x)


def check_eta(eta: float, generator: Rng) -> None:
    if eta < 0:
        raise ValueError(f"eta must be 0 or more, not {eta}")
    if eta > 0 and generator is None:
        raise ValueError(
            "eta > 0 draws noise: pass generator=torch.Generator().manual_seed(...), or eta=0"
        )


def ddim(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 0.0, generator: Rng = None
) -> Iterator[Step]:
    """DDIM (Song et al. 2020, equation 12): Euler's method with eta 0, as noisy as DDPM with eta 1.

    With eta > 0 it draws noise at every step, the last one included.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x_next = x + (down - sigma) * eps
        if eta > 0:
            x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_euler_a(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 1.0, generator: Rng = None
) -> Iterator[Step]:
    """Euler's step to `down`, then fresh noise of `up`. k-diffusion: sample_euler_ancestral.

    Equals DDIM with eta 1, but draws no noise for a step to sigma 0.
    """
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        x_next = x + (down - sigma) * eps
        if up > 0:
            x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


# ---- two calls of the network in a step ----------------------------------------------------------
# Step.eps is the first call's. A step to sigma 0 makes one call: there is no noise left to predict.


def k_heun(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Heun's method: average the slopes at both ends of the step.

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


def midpoint_eps(
    predict_eps: PredictEps, x: Tensor, eps: Tensor, sigma: float, sigma_next: float
) -> Tensor:
    """The slope at the geometric mean of the sigmas (halfway in lambda), after an Euler step."""
    middle = (sigma * sigma_next) ** 0.5
    return predict_eps(x + (middle - sigma) * eps, middle)


def k_dpm_2(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """The midpoint method, with the midpoint halfway in lambda. k-diffusion: sample_dpm_2.

    DPM-Solver-2 (Lu et al. 2022, algorithm 1), except that eps is held constant over sigma, not
    over lambda.
    """
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slope = eps if sigma_next == 0 else midpoint_eps(predict_eps, x, eps, sigma, sigma_next)
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_dpm_2_a(
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 1.0, generator: Rng = None
) -> Iterator[Step]:
    """k_dpm_2's step to `down`, then fresh noise of `up`. k-diffusion: sample_dpm_2_ancestral."""
    check_eta(eta, generator)
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        down, up = ancestral_step(sigma, sigma_next, eta)
        slope = eps if down == 0 else midpoint_eps(predict_eps, x, eps, sigma, down)
        x_next = x + (down - sigma) * slope
        if up > 0:
            x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


def k_dpmpp_2(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """DPM-Solver++(2M): extrapolate x0 from this step's and the last one's, and hold it constant.

    k-diffusion: sample_dpmpp_2m; Lu et al. 2022 (DPM-Solver++), algorithm 2. h is the step's length
    in lambda, r the last step's over h. The first step, and one to sigma 0, do not extrapolate.
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
    predict_eps: PredictEps, x: Tensor, sigmas: list[float], eta: float = 1.0, generator: Rng = None
) -> Iterator[Step]:
    """DPM-Solver++(2S) to `down`, by x0 halfway in lambda; then fresh noise of `up`.

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
            x_next = x_next + up * fresh_noise(x, generator, sigma, sigma_next)
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


# Adams-Bashforth weights for an even schedule, newest slope first, by the number of slopes.
PLMS_WEIGHTS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def plms(predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Iterator[Step]:
    """Pseudo linear multistep: average the last four slopes as if all steps had one length.

    CompVis: ldm/models/diffusion/plms.py; Liu et al. 2022 (PNDM). The first step is Heun's ("pseudo
    improved Euler"). The order is only 2, because no schedule here is even in sigma.
    """
    slopes: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        eps = predict_eps(x, sigma)
        slopes = [eps, *slopes][:4]
        slope = eps
        if len(slopes) > 1:
            weights = PLMS_WEIGHTS[len(slopes)]
            slope = sum(w * old for w, old in zip(weights, slopes, strict=True))
        elif sigma_next > 0:
            slope = (eps + predict_eps(x + (sigma_next - sigma) * eps, sigma_next)) / 2
        x_next = x + (sigma_next - sigma) * slope
        yield Step(i, sigma, sigma_next, x, eps, x_next)
        x = x_next


class Facts(NamedTuple):
    """What is known about a sampler on paper. `minisd lab` measures it."""

    usual_name: str  # in pictures' settings
    order: int  # the error falls with steps^-order, once fresh noise is switched off
    degrees: str  # a digit each for steps 1 to 4: up to which k it integrates eps = sigma^k exactly
    memory: bool = False  # whether it uses slopes of earlier steps
    calls: int | None = 10  # of the network in 10 steps, the last of them to sigma 0
    normals: int = 0  # draws of fresh noise in these 10 steps, if eta is above 0
    uneven_order: int | None = None  # the order where long and short steps alternate, if it differs
    more: Mapping[str, Any] = {}  # other fields of minisd.lab's Theory, if they differ


TEN = (k_lms, ddim, plms, k_euler, k_euler_a, k_heun, k_dpm_2, k_dpm_2_a, k_dpmpp_2, k_dpmpp_2_a)
SAMPLERS: dict[str, Sampler] = {sampler.__name__: sampler for sampler in TEN}
FACTS: dict[str, Facts] = {
    "k_lms": Facts("LMS", 4, "0123", memory=True),
    "ddim": Facts("DDIM", 1, "0000", normals=10),
    "plms": Facts("PLMS", 2, "1123", memory=True, calls=11, uneven_order=1),
    "k_euler": Facts("Euler", 1, "0000"),
    "k_euler_a": Facts("Euler a", 1, "0000", normals=9),
    "k_heun": Facts("Heun", 2, "1111", calls=19),
    "k_dpm_2": Facts("DPM2", 2, "0000", calls=19),
    "k_dpm_2_a": Facts("DPM2 a", 2, "0000", calls=19, normals=9),
    "k_dpmpp_2": Facts("DPM++ 2M", 2, "0000", memory=True),
    "k_dpmpp_2_a": Facts("DPM++ 2S a", 2, "0000", calls=19, normals=9),
}
