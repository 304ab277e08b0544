"""Brownian-path noise: fresh noise that depends on the noise levels, not on the number of draws.

A stochastic sampler solves an SDE, whose noise is a Brownian path W over sigma. With a new draw at
each step, every number of steps has a path of its own, so no two pictures agree. Here the noise of
a step from a down to b is its part of one path, -(W(a) - W(b)) / sqrt(a - b). So 20, 40 and 80
steps follow the same path, and their pictures settle.

    img2img(sd, ..., sampler=on_brownian_path(dpmpp_2m_sde))

torchsde's BrownianTree, as k-diffusion's BrownianTreeNoiseSampler uses it, gives the same numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature

import numpy as np
import torch
from torch import Tensor

from minisd.samplers import PredictEps, Rng, Sampler, Step
from minisd.schedule import SIGMAS

LOW, HIGH = float(SIGMAS[0]), float(SIGMAS[-1])


class BrownianPath:
    """A noise source (x, sigma, sigma_next) -> noise, for a sampler's argument `generator`.

    seeds      one for each image of the batch, or a single number
    low, high  the levels that the path spans: steps outside raise ValueError
    randn      (seed, shape) -> standard normals. The default draws them on the CPU, so that the
               path is the same on all devices
    """

    def __init__(
        self,
        seeds: int | Sequence[int],
        low: float = LOW,
        high: float = HIGH,
        randn: Callable[[int, torch.Size], Tensor] | None = None,
    ):
        self.seeds = [seeds] if isinstance(seeds, int) else list(seeds)
        self.low, self.high, self.randn = low, high, randn or seeded_randn

    def __call__(self, x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """The noise of the step, of x's shape. sigma_next 0 counts as `low`."""
        if len(self.seeds) != len(x):
            raise ValueError(f"the path has {len(self.seeds)} seeds for {len(x)} images")
        sigma_next = sigma_next or self.low
        if not self.low - 1e-6 <= sigma_next <= sigma <= self.high + 1e-6:
            span = f"{self.low:.6g} to {self.high:.6g}"
            raise ValueError(
                f"the Brownian path spans {span}, not the step from {sigma:.6g} to {sigma_next:.6g}"
            )
        if sigma == sigma_next:
            return torch.zeros_like(x)
        parts = [self.increment(seed, sigma_next, sigma, x[:1].shape) for seed in self.seeds]
        return torch.cat(parts).to(x) / -((sigma - sigma_next) ** 0.5)

    def increment(self, seed: int, low: float, high: float, shape: torch.Size) -> Tensor:
        """W(high) - W(low), of (1, 4, h, w), by halving the span until the ends are borders.

        Levy's construction: given W at both ends of an interval, W at its middle is normal about
        the straight line between them. Every interval has a key, which seeds its normal.
        """

        def normal(key: int | None, depth: int) -> Tensor:
            spawn_key = () if key is None else (key, depth)
            sequence = np.random.SeedSequence(seed, spawn_key=spawn_key, pool_size=24)
            return self.randn(int(sequence.generate_state(1)[0]), shape)

        def part(w: Tensor, start: float, end: float, key: int, depth: int) -> Tensor:
            """The increment over the part of [low, high] in [start, end], whose own is w."""
            if low <= start and end <= high:
                return w
            middle = round((start + end) / 2, 6)
            if not start < middle < end:  # an interval of one millionth counts as outside
                return torch.zeros_like(w)
            share = (middle - start) / (end - start)
            spread = ((middle - start) * (end - middle) / (end - start)) ** 0.5
            left = share * w + spread * normal(key, depth)
            total = torch.zeros_like(w)
            if low < middle:
                total = total + part(left, start, middle, 2 * key, depth + 1)
            if high > middle:
                total = total + part(w - left, middle, end, 2 * key + 1, depth + 1)
            return total

        low, high = round(low, 6), round(high, 6)
        full = normal(None, 0) * (self.high - self.low) ** 0.5
        return part(full, round(self.low, 6), round(self.high, 6), 0, 0)


def seeded_randn(seed: int, shape: torch.Size) -> Tensor:
    """The first draw of a CPU generator with this seed, in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def on_brownian_path(sampler: Sampler) -> Sampler:
    """The sampler with the noise of Brownian paths, whose seeds are those of the images."""
    if "generator" not in signature(sampler).parameters:
        raise ValueError("only a sampler with a parameter named generator can follow a path")
    return partial(follow_path, sampler)


def follow_path(
    sampler: Sampler,
    predict_eps: PredictEps,
    x: Tensor,
    sigmas: list[float],
    generator: Rng = None,
    **options,
) -> Iterator[Step]:
    if generator is None or callable(generator):
        raise ValueError("a Brownian path takes its seed from a torch.Generator: pass generator=")
    generators = generator if isinstance(generator, Sequence) else [generator]
    path = BrownianPath([rng.initial_seed() for rng in generators])
    return sampler(predict_eps, x, sigmas, generator=path, **options)
