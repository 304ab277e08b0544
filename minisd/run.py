"""What img2img, txt2img and inpaint share: arguments, randomness, events, the result."""

import operator
import random
import runpy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.guidance import GuidanceRule
from minisd.images import Picture, floor_to_multiple, open_image, to_tensor
from minisd.samplers import SAMPLERS, Rng, Sampler, Step
from minisd.schedule import SCHEDULES, SIGMAS, Schedule, default_schedule, levels_of, start_index
from minisd.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Result:
    """What a run gives. A list of seeds gives a picture each: use the plurals."""

    images: list[Image.Image]
    latent: Tensor = field(repr=False)  # (B, 4, h, w), the final ones, scaled as by vae.encode
    seeds: list[int]

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def seed(self) -> int:
        return self.seeds[0]

    def _repr_png_(self) -> bytes | None:
        """For notebooks: the pictures, side by side."""
        return Image.fromarray(np.hstack([*map(np.asarray, self.images)]))._repr_png_()


@dataclass(frozen=True)
class Encoded:
    """The init image's clean latent. txt2img has no such event."""

    x0: Tensor  # (1, 4, h, w)


@dataclass(frozen=True)
class Noised:
    """The noise insertion, x = x0 + sigma * noise. In txt2img x0 is zero."""

    x0: Tensor  # (1, 4, h, w)
    noise: Tensor  # (B, 4, h, w)
    sigma: float
    x: Tensor  # (B, 4, h, w)
    keep: Tensor | None = None  # inpainting: (1, 1, h, w), 1 where the picture is kept


@dataclass(frozen=True)
class Decoded:
    """The decoder's picture."""

    image: Tensor  # (B, 3, H, W), about in [-1, 1]


Event = Encoded | Noised | Step | Decoded
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that does nothing."""


def choose(
    sampler: str | Sampler, schedule: str | Schedule | None, guidance: float | str | GuidanceRule
) -> tuple[Sampler, Schedule, float | GuidanceRule]:
    """The functions that the names stand for."""
    if schedule is None:
        schedule = default_schedule(sampler)
    rule = lookup("guidance rule", guidance, {}) if isinstance(guidance, str) else guidance
    if isinstance(rule, int | float) and not np.isfinite(rule):
        raise ValueError(f"guidance must be a finite number, not {rule}")
    sample = lookup("sampler", sampler, SAMPLERS)
    return sample, lookup("schedule", schedule, SCHEDULES), rule


def lookup(kind: str, name: str | Callable[..., Any], table: Mapping[str, Any]) -> Any:
    """The function of that name in the table, or FILE.py:FUNCTION; a function stays as it is.

    The file is run. Raises ValueError for an unknown name, OSError for a missing file.
    """
    if callable(name):
        return name
    if name in table:
        return table[name]
    path, _, function_name = name.rpartition(":")
    if not path.endswith(".py"):
        known = ", ".join([*table, "FILE.py:FUNCTION"])
        hint = "".join(f" (did you mean {x}?)" for x in get_close_matches(name, table, 1))
        raise ValueError(f"there is no {kind} named {name!r}; choose from {known}{hint}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        function = runpy.run_path(path).get(function_name)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ValueError(f"{path} has no function named {function_name!r}")
    return function


def encode(sd: StableDiffusion, image: Picture | Tensor) -> Tensor:
    """(1, 4, h, w): the clean latent of a picture, resized if need be; a latent stays as it is."""
    if not isinstance(image, Tensor):
        picture = floor_to_multiple(open_image(image), sd.multiple)
        return sd.vae.encode(to_tensor(picture).to(sd.device))
    multiple = sd.multiple // sd.vae.factor
    if image.ndim != 4 or image.shape[:2] != (1, 4) or any(n % multiple for n in image.shape[2:]):
        sides = f"(1, 4, h, w) with h and w multiples of {multiple}"
        raise ValueError(f"a latent must have the shape {sides}, not {tuple(image.shape)}")
    return image.to(sd.device, torch.float32)


def remaining(schedule: Schedule, steps: int, strength: float = 1.0) -> list[float]:
    """The noise levels from where a run of this strength starts, down to the end.

    At strength 0 no step is left that could remove noise, so none is added: the list is [0.0].
    Raises ValueError for levels that no run can use, and warns of levels that spoil a picture.
    """
    levels = levels_of(schedule, steps)
    for doubt in doubts(levels, schedule):
        warnings.warn(doubt, stacklevel=4)  # at the line that called img2img
    sigmas = levels[start_index(steps, strength) :]
    return sigmas if len(sigmas) > 1 else [0.0]


def doubts(sigmas: list[float], schedule: Schedule | None = None) -> list[str]:
    """What may spoil a picture that is drawn on these levels of a schedule, a sentence each."""
    low, high = getattr(schedule, "trained_on", (float(SIGMAS[0]), float(SIGMAS[-1])))
    # Published lists are rounded, to 14.615 and 0.029: 1 % is less than a step of the training.
    outside = [sigma for sigma in sigmas if sigma and not 0.99 * low < sigma < 1.01 * high]
    trained = f"the network was trained on {low:.4f} to {high:.2f}"
    notes = [f"the schedule has the noise level {s:.6g}, but {trained}" for s in outside[:1]]
    if sigmas[0] < 3.9:  # the network expects more than a quarter of picture in its input
        start = f"the schedule starts at sigma {sigmas[0]:.2f}, far from pure noise"
        notes.append(f"{start}: use more steps, or the schedule model")
    if sigmas[-1] > 1.01 * low:
        notes.append(f"the schedule ends at sigma {sigmas[-1]:g}: that noise stays in the picture")
    return notes


def seeded(seed: int | Sequence[int] | None) -> tuple[list[torch.Generator], list[int]]:
    """A generator for each image, on the CPU: a seed is the same noise on all devices."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32 - 1)
    try:
        seeds = [operator.index(n) for n in (seed if isinstance(seed, Iterable) else [seed])]
    except TypeError:
        seeds = []
    if not seeds or not all(0 <= n < 2**32 for n in seeds):  # torch would ignore higher bits
        text = f"{seed!r}: it is a whole number, or a list of them"
        raise ValueError(f"seed must be between 0 and {2**32 - 1}, not {text}")
    return [torch.Generator("cpu").manual_seed(n) for n in seeds], seeds


def draw_noise(x0: Tensor, rngs: list[torch.Generator], noise: Tensor | None = None) -> Tensor:
    """(B, 4, h, w): each generator's first draw, or the given noise instead.

    The generators draw even when noise is given, so that later draws are the same either way.
    """
    shape = (1, *x0.shape[1:])
    drawn = torch.cat([torch.randn(shape, generator=rng) for rng in rngs])
    if noise is None:
        return drawn.to(x0)
    if noise.shape not in (drawn.shape, shape):
        raise ValueError(f"noise must be {tuple(drawn.shape)}, not {tuple(noise.shape)}")
    return noise.to(x0).expand(drawn.shape)


def random_stream(sample: Sampler, rngs: list[torch.Generator]) -> dict[str, Rng]:
    """The generators as an argument, if the sampler takes one: it then draws noise."""
    names = signature(sample).parameters
    if "generator" not in names and all(p.kind != Parameter.VAR_KEYWORD for p in names.values()):
        return {}
    return {"generator": rngs[0] if len(rngs) == 1 else rngs}
