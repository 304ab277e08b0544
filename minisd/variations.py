"""Related pictures: the chain of seeds of -n, and noises between two seeds' (-v and -V).

InvokeAI: ldm/invoke/generator/base.py.
"""

import math
import random

import torch
from torch import Tensor


def seed_chain(seed: int, n: int) -> list[int]:
    """`seed` and the n - 1 that follow: each the first number of Python's generator seeded with the
    one before. (The original asked the global generator, which seed_everything had just seeded.)"""
    seeds = [seed]
    while len(seeds) < n:
        seeds.append(random.Random(seeds[-1]).randrange(0, 2**32 - 1))
    return seeds


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The noise that img2img and txt2img put in for this seed."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def varied_noise(seed: int, towards: list[tuple[int, float]], shape: tuple[int, ...]) -> Tensor:
    """The seed's noise, led towards that of each (seed, weight) in turn."""
    noise = noise_of(seed, shape)
    for other, weight in towards:
        noise = slerp(weight, noise, noise_of(other, shape))
    return noise


def slerp(weight: float, a: Tensor, b: Tensor) -> Tensor:
    """From a (weight 0) to b (weight 1) on the great circle through both, taken as one long vector.

    A straight line would lead through shorter vectors: half way between two noises lies one of
    variance 1/2, which no noise level of the schedule fits.
    """
    cosine = float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()))
    if abs(cosine) > 0.9995:
        return (1 - weight) * a + weight * b
    angle = math.acos(cosine)
    return (math.sin((1 - weight) * angle) * a + math.sin(weight * angle) * b) / math.sin(angle)
