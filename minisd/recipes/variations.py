"""Related pictures: the seeds of a series (-n), and noise between that of two seeds (-v and -V).

InvokeAI: ldm/invoke/generator/base.py.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_chain(seed: int, n: int) -> list[int]:
    """`seed` and the n - 1 seeds after it.

    Each is the first number that Python's generator gives when seeded with the one before. (The
    original used the global generator, which seed_everything had just seeded.)
    """
    seeds = [seed]
    while len(seeds) < n:
        seeds.append(random.Random(seeds[-1]).randrange(0, 2**32 - 1))
    return seeds


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The noise that img2img and txt2img add for this seed."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def varied_noise(seed: int, towards: Sequence[tuple[int, float]], shape: tuple[int, ...]) -> Tensor:
    """The seed's noise, moved towards that of each (seed, weight) in turn."""
    noise = noise_of(seed, shape)
    for other, weight in towards:
        noise = slerp(weight, noise, noise_of(other, shape))
    return noise


def slerp(weight: float, a: Tensor, b: Tensor) -> Tensor:
    """From a (weight 0) to b (weight 1) along the great circle through both, each as one vector.

    A straight line would pass through shorter vectors: halfway between two noises the variance is
    1/2, and then the noise level would be too low.
    """
    cosine = float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()))
    if abs(cosine) > 0.9995:
        return (1 - weight) * a + weight * b
    angle = math.acos(cosine)
    return (math.sin((1 - weight) * angle) * a + math.sin(weight * angle) * b) / math.sin(angle)
