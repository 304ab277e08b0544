"""The plan: what a run is going to do, computed from its settings alone. No model is needed."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minisd.more_samplers.adapters import find_sampler
from minisd.run import doubts, lookup, random_stream
from minisd.samplers import Sampler
from minisd.schedule import (
    SCHEDULES,
    Schedule,
    check_steps,
    default_schedule,
    levels_of,
    start_index,
)


@dataclass(frozen=True)
class Plan:
    """What a run of these settings does. `minisd explain` prints it."""

    strength: float
    sampler: str | Sampler
    schedule: str | Schedule
    sigmas: list[float]  # the whole schedule: steps_asked + 1 levels
    steps_skipped: int
    calls: int  # of the network; with guidance, each is a batch of two
    notes: list[str] = field(default_factory=list)  # what a run warns of

    @property
    def steps_asked(self) -> int:
        return len(self.sigmas) - 1

    @property
    def steps_run(self) -> int:
        return self.steps_asked - self.steps_skipped

    @property
    def sigma(self) -> float:
        """The level of the noise that is added. A run of no steps adds none."""
        return self.sigmas[self.steps_skipped] if self.steps_run else 0.0

    @property
    def image_share(self) -> float:
        """The image's factor in the network's first input. Its square is the papers' abar."""
        return 1 / math.sqrt(self.sigma**2 + 1)

    @property
    def noise_share(self) -> float:
        """The noise's factor in the network's first input."""
        return self.sigma * self.image_share


def plan(
    steps: int,
    strength: float = 1.0,
    sampler: str | Sampler = "k_lms",
    schedule: str | Schedule | None = None,
) -> Plan:
    """The arguments are img2img's; a strength of 1 plans txt2img too.

    Raises ValueError for unknown names, values out of range, and levels that no run can use.
    """
    schedule = default_schedule(sampler) if schedule is None else schedule
    sample = find_sampler(sampler)
    levels = lookup("schedule", schedule, SCHEDULES)
    sigmas = levels_of(levels, steps)
    skipped = start_index(steps, strength)
    calls = count_calls(sample, sigmas[skipped:])
    return Plan(strength, sampler, schedule, sigmas, skipped, calls, doubts(sigmas, levels))


class Counter:
    """A `predict_eps` that counts its calls. It predicts the noise in data of variance 1."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        return sigma / (sigma**2 + 1) * x

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        eps = self(x, sigma)
        return eps, eps

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_cond


def count_calls(sampler: str | Sampler, sigmas: list[float]) -> int:
    """How often a sampler calls the network on a schedule: it runs on a latent of 2x2 pixels."""
    sample = find_sampler(sampler)
    counter = Counter()
    x = torch.full((1, 4, 2, 2), sigmas[0])  # 16 numbers: exact mode draws no fewer
    generators = random_stream(sample, [torch.Generator().manual_seed(0)])
    for _ in sample(counter, x, sigmas, **generators):
        pass
    return counter.calls


def steps_after(run: int, strength: float, most: int = 10_000) -> int:
    """How many steps to ask for, so that `run` of them are run at this strength.

    The smallest count that works: run / strength, rounded up. Of all counts that work, the smallest
    is closest to the requested strength. One exists for any strength above 0, because asking for
    one more step runs at most one more. Raises ValueError if the count would be over `most`, and at
    strength 0.
    """
    check_steps(run)
    start_index(1, strength)  # raises ValueError for a strength out of range
    steps = math.ceil(round(run / strength, 9)) if strength * most >= run else most + 1
    while steps <= most and steps - start_index(steps, strength) < run:
        steps += 1  # the product's rounding and the quotient's may differ by one
    if steps > most:
        longest = most - start_index(most, strength)
        failure = f"no step count up to {most} runs {run} steps at strength {strength}"
        raise ValueError(f"{failure}: {most} steps run {longest}")
    return steps
