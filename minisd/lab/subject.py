"""What is certified, what is known about it on paper, and how it is run."""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from minisd.lab.exact import Mixture
from minisd.schedule import SCHEDULES, SIGMAS, karras, start_index
from minisd.step import PredictEps, Step

Sampler = Callable[..., Iterator[Step]]

POINT = Mixture(((1.0, 0.7, 0.0),))
GAUSSIAN = Mixture(((1.0, 0.3, 0.5),))
MIXTURE = Mixture(((0.4, -1.0, 0.3), (0.6, 0.8, 0.5)))
HIGH, LOW = float(SIGMAS[-1]), float(SIGMAS[0])  # 14.61 and 0.0292, what the network was trained on

# "Exact" is 1e-9: float64 rounds to 1e-16 of values up to 50, a run adds up some hundred roundings,
# and a noise gain of 30 amplifies them. The least harmful bug has been 1e-5.
EXACT = 1e-9


@dataclass(frozen=True)
class Theory:
    """What is known about a sampler on paper. None: not known, so it is only measured."""

    order: int | None = None  # error ~ steps^-order, with no noise added
    weak_order: int | None = None  # the same for the distribution of results, with noise added
    uneven_order: int | None = None  # order where long and short steps take turns
    degrees: str = (
        ""  # of the polynomials eps(sigma) that steps 1 to 4 integrate exactly, a digit each
    )
    memory: bool | None = None  # does it look at steps before the present one?
    calls: int | None = None  # of the network, in 10 steps of which the last ends in sigma 0
    normals: int | None = None  # drawn in these 10 steps
    eta: float | None = None  # the fresh noise of a step, in units of DDPM's
    max_gain: float | None = None  # the noise gain that it promises to keep


@dataclass(frozen=True)
class Line:
    """One line of the card: `value` is what was measured, `meaning` what a failure usually
    means."""

    check: str
    verdict: str  # pass, fail or measured
    value: float
    expected: str
    meaning: str
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # for the plots


def judge(
    check: str,
    value: float,
    ok: bool | None,
    expected: str,
    meaning: str,
    curves: dict[str, list[tuple[float, float]]] | None = None,
) -> Line:
    """A Line that passes or fails, or with ok None was only measured."""
    verdict = "measured" if ok is None else "pass" if ok else "fail"
    return Line(check, verdict, float(value), expected, meaning, curves or {})


@dataclass(frozen=True)
class Subject:
    sampler: Sampler
    theory: Theory = Theory()

    @property
    def ode(self) -> Sampler:
        """The sampler with its noise switched off, if it has the switch `eta`."""
        has_switch = "eta" in inspect.signature(self.sampler).parameters
        return partial(self.sampler, eta=0.0) if has_switch else self.sampler

    @property
    def ode_draws(self) -> bool:
        """Does it draw noise even with its noise switched off? Then it solves no ODE."""
        return count_draws(self.ode) != 0

    @property
    def draws(self) -> bool:
        return count_draws(self.sampler) != 0


def count_draws(sampler: Sampler) -> int | None:
    """Normals of x's shape drawn in 10 steps; None if the stream moved in any other way."""
    stream, used = (torch.Generator().manual_seed(0) for _ in range(2))
    x = latent(HIGH)
    run(sampler, POINT, x, karras(10), used)
    drawn = draws_between(stream, used, x.shape)
    return None if drawn is None else len(drawn)


def draws_between(
    stream: torch.Generator, used: torch.Generator, shape: torch.Size, at_most: int = 1000
) -> list[Tensor] | None:
    """The normals that lead a stream from one state to the other; None if whole latents don't."""
    drawn: list[Tensor] = []
    while not torch.equal(stream.get_state(), used.get_state()):
        if len(drawn) == at_most:
            return None
        drawn.append(torch.randn(shape, generator=stream).double())
    return drawn


def run(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    generator: torch.Generator | None = None,
) -> list[Step]:
    """All steps. A sampler that takes a generator gets this one, or a fresh one of seed 0."""
    return list(start(sampler, predict_eps, x, sigmas, generator))


def start(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    generator: torch.Generator | None = None,
) -> Iterator[Step]:
    options = {}
    if "generator" in inspect.signature(sampler).parameters:
        options["generator"] = generator or torch.Generator().manual_seed(0)
    return sampler(predict_eps, x, sigmas, **options)


def result(sampler: Sampler, predict_eps: PredictEps, x: Tensor, sigmas: list[float]) -> Tensor:
    return run(sampler, predict_eps, x, sigmas)[-1].x_next


class Recorder:
    """A model that remembers what it was asked, and what it answered (and a copy, to compare)."""

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
    """Data of that mean and std with noise of sigma, always the same: (1, 4, size, size)
    float64."""
    z = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(1000))
    return mean + (std**2 + sigma**2) ** 0.5 * z.double()


def late_entries() -> list[list[float]]:
    """Every grid, whole and entered late as in img2img."""
    return [
        grid(10)[start_index(10, strength) :]
        for grid in SCHEDULES.values()
        for strength in (1.0, 0.4)
    ]


def rms(x: Tensor) -> float:
    return x.double().pow(2).mean().sqrt().item()


def slope(points: list[tuple[float, float]]) -> float:
    """How fast the second number falls with the first between the last two points, in log-log."""
    (n, error), (n_next, error_next) = points[-2:]
    if not (0 < error < math.inf and 0 < error_next < math.inf):
        return math.nan
    return math.log(error / error_next) / math.log(n_next / n)
