"""The sampler that is certified, what is known about it on paper, and how the checks run it."""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from minisd.lab.exact import Mixture
from minisd.more_samplers.schedules import exponential
from minisd.run import random_stream
from minisd.samplers import PredictEps, Rng, Sampler, Step
from minisd.schedule import SIGMAS, Schedule, ddim, karras, model, start_index

POINT = Mixture(((1.0, 0.7, 0.0),))
GAUSSIAN = Mixture(((1.0, 0.3, 0.5),))
MIXTURE = Mixture(((0.4, -1.0, 0.3), (0.6, 0.8, 0.5)))
HIGH, LOW = float(SIGMAS[-1]), float(SIGMAS[0])  # 14.61 and 0.0292, the range of training

# The schedules that samplers are run on. At these step counts, ddim_original is the same as ddim.
SCHEDULES: dict[str, Schedule] = {
    "model": model,
    "karras": karras,
    "exponential": exponential,
    "ddim": ddim,
}

# "Exact" means within 1e-9. float64 rounds to 1e-16 of values up to 50, a run adds up a few hundred
# roundings, and a noise gain of 30 amplifies them. The least harmful bug so far changed 1e-5.
EXACT = 1e-9
FLOAT32_NOISE = 1e-5  # float32 rounds fresh noise to 6e-8 of at most 60


@dataclass(frozen=True)
class Theory:
    """What is known about a sampler on paper. None: unknown, so it is only measured."""

    order: int | None = None  # the error falls with steps^-order if no noise is added
    weak_order: int | None = None  # the same for the distribution of results, with noise added
    strong_order: int | None = None  # the same for the results of one Brownian path
    uneven_order: int | None = None  # the order where long and short steps alternate
    degrees: str = ""  # a digit each for steps 1 to 4: the degree up to which eps(sigma) is exact
    defect: float | None = None  # what its formula misses in lab/formula.py's four steps
    memory: bool | None = None  # whether it uses earlier steps
    calls: int | None = None  # of the network in 10 steps of which the last goes to sigma 0
    normals: int | None = None  # draws of fresh noise in these 10 steps
    eta: float | None = None  # the fresh noise of a step, in units of DDPM's
    max_gain: float | None = None  # the noise gain that it promises to keep
    resumes: bool = True  # whether a run from the middle is the end of a whole run


@dataclass(frozen=True)
class Subject:
    """A sampler and its theory."""

    sampler: Sampler
    theory: Theory = Theory()

    @property
    def ode(self) -> Sampler:
        """The sampler with its fresh noise switched off, if it has an `eta`."""
        has_eta = "eta" in inspect.signature(self.sampler).parameters
        return partial(self.sampler, eta=0.0) if has_eta else self.sampler

    @property
    def ode_draws(self) -> bool:
        """Whether noise changes the result even when it is switched off: it solves no ODE then.

        k-diffusion's samplers draw noise with eta 0 too, and multiply it by 0.
        """
        if count_draws(self.ode) == 0:
            return False
        sigmas, rngs = karras(10), [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        ends = [all_steps(self.ode, POINT, latent(HIGH), sigmas[:-1], rng)[-1] for rng in rngs]
        return not torch.equal(*(end.x_next for end in ends))

    @cached_property
    def draws(self) -> bool:
        return count_draws(self.sampler) != 0

    @cached_property
    def lost_dtypes(self) -> list[torch.dtype]:
        """The dtypes that x does not keep. Noise drawn in float32 changes x if not converted."""
        lost = []
        for dtype in (torch.float32, torch.bfloat16):
            steps = all_steps(self.sampler, POINT, latent(HIGH).to(dtype), karras(10))
            if any(step.x_next.dtype != dtype for step in steps):
                lost.append(dtype)
        return lost

    @property
    def noise_limit(self) -> float:
        """How closely the noise in x must be explained. Float32 noise fails a line of its own."""
        return FLOAT32_NOISE if self.lost_dtypes else EXACT


def count_draws(sampler: Sampler) -> int | None:
    """How many latents of noise are drawn in 10 steps; None if it draws in other shapes."""
    stream, used = (torch.Generator().manual_seed(0) for _ in range(2))
    x = latent(HIGH)
    all_steps(sampler, POINT, x, karras(10), used)
    draws = draws_between(stream, used, x.shape)
    return None if draws is None else len(draws)


def draws_between(
    stream: torch.Generator, used: torch.Generator, shape: torch.Size, at_most: int = 1000
) -> list[Tensor] | None:
    """The latents of noise that take `stream` to the state of `used`.

    None if no number of draws of this shape does. Changes `stream`.
    """
    draws: list[Tensor] = []
    while not torch.equal(stream.get_state(), used.get_state()):
        if len(draws) == at_most:
            return None
        draws.append(torch.randn(shape, generator=stream).double())
    return draws


def step_iterator(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    generator: Rng = None,
) -> Iterator[Step]:
    """The sampler's run. If it takes a generator, it gets this one, or a new one of seed 0."""
    generator = generator or torch.Generator().manual_seed(0)
    rngs = list(generator) if isinstance(generator, Sequence) else [generator]
    model = predict_eps if hasattr(predict_eps, "guide") else OneText(predict_eps)
    return sampler(model, x, sigmas, **random_stream(sampler, rngs))


def all_steps(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    generator: Rng = None,
) -> list[Step]:
    return list(step_iterator(sampler, predict_eps, x, sigmas, generator))


def final_latent(
    sampler: Sampler, predict_eps: PredictEps, x: Tensor, sigmas: list[float]
) -> Tensor:
    return all_steps(sampler, predict_eps, x, sigmas)[-1].x_next


class OneText:
    """A model as a `predict_eps` for CFG++: it predicts the same with and without the prompt."""

    def __init__(self, model: PredictEps):
        self.model = model

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.model(x, sigma)

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        eps = self.model(x, sigma)
        return eps, eps

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_cond


class Recorder:
    """A model that records its inputs and its answers, and a copy of each answer to compare."""

    def __init__(self, model: PredictEps):
        self.model = model
        self.calls: list[tuple[Tensor, float]] = []
        self.answers: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        eps = self.model(x, sigma)
        self.calls.append((x.clone(), sigma))
        self.answers.append((eps, eps.clone()))
        return eps


def latent(sigma: float, mean: float = 0.0, std: float = 1.0, size: int = 8) -> Tensor:
    """(1, 4, size, size) float64, always the same: data of mean and std with noise of sigma."""
    z = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(1000))
    return mean + (std**2 + sigma**2) ** 0.5 * z.double()


def late_schedules() -> list[list[float]]:
    """Every schedule, from its start and from where img2img of strength 0.4 starts."""
    return [
        schedule(10)[start_index(10, strength) :]
        for schedule in SCHEDULES.values()
        for strength in (1.0, 0.4)
    ]


def rms(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item()


def log_slope(points: list[tuple[float, float]]) -> float:
    """How fast y falls with x between the last two points: s, where y ~ x^-s."""
    (n, error), (n_next, error_next) = points[-2:]
    if not (0 < error < math.inf and 0 < error_next < math.inf):
        return math.nan
    return math.log(error / error_next) / math.log(n_next / n)
