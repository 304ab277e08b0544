"""A recipe in another program's dialect -> a picture. Read minisd/img2img.py first.

The page is the same, but each of its lines asks the program's Course.
"""

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.dialects.course import Course, Draws, Option
from minisd.dialects.network import Network, Texts
from minisd.dialects.noise import CARD, CARDS, Stream, first_draw
from minisd.images import Picture, open_image, resize, to_pils, to_tensor
from minisd.more_samplers.brownian import BrownianPath
from minisd.recipes.recipe import Job, Recipe, size_of
from minisd.run import Decoded, Encoded, Noised, Observer, Result, encode, ignore
from minisd.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class Program:
    """One program, as data and functions. A file of this folder has each."""

    name: str  # of the dialect
    title: str  # of the program
    options: dict[str, Option]
    samplers: dict[str, str]  # the program's names, and minisd's
    schedules: Sequence[str]
    course: Callable[[Recipe, bool], Course]  # the recipe, and whether there is an init image
    texts: Callable[[Recipe, StableDiffusion], Texts]
    needs_uncond: Callable[[Recipe], Callable[[int, float], bool]]
    size: Callable[[Recipe, StableDiffusion, Image.Image | None], tuple[int, int]]
    resized: Callable[[Image.Image, tuple[int, int]], Image.Image]
    rounded: bool = False  # to 8 bits; False: truncated
    varied: Callable[[Tensor, Tensor, float], Tensor] | None = None  # noise between two seeds
    repaints_white: bool = False  # whether it has inpainting, where a mask is white
    next_seed: Callable[[int], int] = lambda seed: seed + 1  # of the next picture of a series


def check(program: Program, recipe: Recipe) -> None:
    """Raises ValueError for what the program does not have, or what is not spoken here."""
    program.course(recipe, recipe.image is not None)
    if not isinstance(recipe.guidance, int | float) or recipe.guidance_rule:
        raise ValueError(f"the guidance of {program.title} is a number, without a rule")
    if recipe.variations and program.varied is None:
        raise ValueError(f"{program.title} does not vary the noise of a seed: leave -V out")
    if len(recipe.variations) > 1 and program.name == "a1111":
        raise ValueError(f"{program.title} moves the noise towards one other seed, not several")
    if recipe.mask is not None and not program.repaints_white:
        raise ValueError(f"inpainting is not spoken in the dialect {program.name}: leave -M out")


def prepare(
    program: Program,
    recipe: Recipe,
    sd: StableDiffusion,
    image: Picture | Tensor | None = None,
    mask: Picture | Tensor | None = None,
) -> Job:
    """Open and resize the pictures as the program does. Raises ValueError, OSError."""
    image = recipe.image if image is None else image
    mask = recipe.mask if mask is None else mask
    if mask is not None and image is None:
        raise ValueError("a mask needs an init image")
    if mask is not None and not program.repaints_white:
        raise ValueError(f"inpainting is not spoken in the dialect {program.name}: leave -M out")
    init_image: Image.Image | Tensor | None = None
    if isinstance(image, Tensor):
        init_image = image
        size = (image.shape[-1] * sd.vae.factor, image.shape[-2] * sd.vae.factor)
    else:
        original = None if image is None else open_image(image)
        size = program.size(recipe, sd, original)
        if original is not None and recipe.fit:  # before the program gets the picture
            size = size_of(recipe, sd, original)
            original = resize(original, size)
        if any(side < 1 or side % sd.multiple for side in size):
            sides = f"{size[0]}x{size[1]} pixels, but minisd draws multiples of {sd.multiple}"
            raise ValueError(f"{program.title} would draw {sides}: choose another size")
        if original is not None:
            init_image = program.resized(original, size)
        box = (recipe.width or sd.native_size, recipe.height or sd.native_size)
        width, height = box if recipe.fit and original is not None else size
        recipe = replace(recipe, width=width, height=height)
    keep = None if mask is None else white_is_redrawn(mask, size)
    if mask is not None and recipe.mask is None:
        recipe = replace(recipe, mask="MASK")  # the program's rules differ where there is one
    if recipe.seed is None:
        recipe = replace(recipe, seed=random.SystemRandom().randrange(2**32 - 1))
    course = program.course(recipe, image is not None)
    notes = [*course.notes, *doubts_on_card(course.draws, size, sd.vae.factor)]
    for note in notes if image is not None else notes[len(course.notes) :]:
        if isinstance(image, Tensor) and "encoder" in note:
            continue  # a latent is encoded already
        warnings.warn(f"{program.name}: {note}", stacklevel=3)
    nothing = torch.zeros(1, 0, 0)  # the dialect encodes the prompt when it draws
    return Job(sd, recipe, init_image, keep, size, nothing, nothing)


def doubts_on_card(draws: Draws, size: tuple[int, int], factor: int) -> list[str]:
    """A note where a GPU's noise depends on the card, which no program records."""
    numbers = 4 * draws.batch * (size[0] // factor) * (size[1] // factor)
    if draws.source != "GPU" or numbers <= min(CARDS.values()):
        return []
    smaller = sum(threads < numbers for threads in CARDS.values())
    if smaller <= 1 and draws.card == CARD:
        return []
    return [
        f"noise of this size depends on the card: that of {draws.card} is drawn (--set card=...)"
    ]


def white_is_redrawn(mask: Picture | Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W): 0 where the mask is white, at least half; 1 where the picture is kept."""
    if isinstance(mask, Tensor):
        values = mask.float().reshape(1, 1, *mask.shape[-2:])
        return (values / max(1.0, float(values.max())) < 0.5).float()
    grey = open_image(mask).convert("L")
    grey = grey if grey.size == size else grey.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(grey) / np.float32(255) < 0.5).float()[None, None]


@torch.inference_mode()
def draw(job: Job, program: Program, observe: Observer | None = None) -> Result:
    """The picture that the program would have drawn. Raises ValueError for what it cannot do."""
    sd, recipe = job.sd, job.recipe
    course = program.course(recipe, job.image is not None)
    draws, observe = course.draws, observe or ignore
    seeds = [recipe.seed] if isinstance(recipe.seed, int) else list(recipe.seed or [])
    if draws.batch > 1 and len(seeds) > 1:
        raise ValueError("a batch has one seed for all of its pictures: choose one")
    width, height = (side // sd.vae.factor for side in job.size)
    shape = (draws.batch, 4, height, width)
    streams = [Stream(draws.source, seed, draws.card) for seed in seeds]

    def next_draw() -> Tensor:
        return torch.cat([stream.next(shape) for stream in streams]).to(sd.device)

    earlier = [next_draw() for _ in range(draws.before)]
    if job.image is None:
        x0 = torch.zeros(1, *shape[1:], device=sd.device)
    else:
        posterior = None if draws.posterior is None else earlier[draws.posterior]
        x0 = encode_picture(sd, job.image, posterior)
        observe(Encoded(x0))

    noise = next_draw()  # (B, 4, h, w)
    for other, weight in recipe.variations if program.varied and draws.varied else ():
        others = [Stream(draws.source, other + i, draws.card) for i in range(len(seeds))]
        towards = torch.cat([stream.next(shape) for stream in others]).to(noise)
        noise = program.varied(noise, towards, weight)
    x = course.image_gain * x0 + course.gain * noise  # <<< as the program adds it
    observe(Noised(x0, noise, course.inserted, x))
    for _ in range(draws.between):
        next_draw()

    texts = program.texts(recipe, sd)
    needs_uncond = program.needs_uncond(recipe)
    network = Network(sd, texts, float(recipe.guidance), course.timestep, needs_uncond)
    fresh: dict[str, Any] = {}
    if "generator" in signature(course.sampler).parameters:
        fresh = {"generator": step_noise(course, seeds, streams, shape)}
    keep = None if job.mask is None else latent_mask(job.mask, shape).to(x)
    sigmas = course.sigmas
    for step in course.sampler(network, x, sigmas, **fresh):
        if keep is not None:
            # The sampler goes on from this very tensor, so it is changed in place.
            level = known_level(course, step.i)
            scale = ((1 + step.sigma_next**2) / (1 + level**2)) ** 0.5
            known = scale * (x0 + level * noise) if level else x0 * (1 + step.sigma_next**2) ** 0.5
            step.x_next.copy_(keep * known + (1 - keep) * step.x_next)
        observe(step)
        x = step.x_next

    end = sigmas[-1] if len(sigmas) > 1 else course.inserted
    latent = x / (end**2 + 1) ** 0.5 if course.scaled_back else x
    decoded = sd.vae.decode(latent)
    observe(Decoded(decoded))
    images = rounded_pictures(decoded) if program.rounded else to_pils(decoded)
    return Result(images, latent, [seed for seed in seeds for _ in range(draws.batch)])


def step_noise(
    course: Course, seeds: Sequence[int], streams: Sequence[Stream], shape: tuple[int, ...]
) -> Callable[[Tensor, float, float], Tensor]:
    """The fresh noise of the steps, as a sampler asks for it: (x, sigma, sigma_next) -> noise."""
    draws = course.draws
    source = draws.step_source or draws.source
    if draws.tree is not None:
        low, high = draws.tree
        return BrownianPath(list(seeds), low, high, first_draw(source, draws.card))
    if draws.step_seed is not None:
        streams = [Stream(source, draws.step_seed(seed), draws.card) for seed in seeds]

    def next_draw(x: Tensor, sigma: float, sigma_next: float) -> Tensor:
        return torch.cat([stream.next(shape) for stream in streams]).to(x)

    return next_draw


def encode_picture(
    sd: StableDiffusion, image: Image.Image | Tensor, posterior: Tensor | None
) -> Tensor:
    """(1, 4, h, w), or one for each picture of a batch where the posterior's noise is known."""
    if isinstance(image, Tensor):
        return encode(sd, image)
    pixels = to_tensor(image).to(sd.device)
    if posterior is None:
        return sd.vae.encode(pixels)
    return torch.cat([sd.vae.encode(pixels, noise) for noise in posterior.split(1)])


def latent_mask(keep: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(1, 1, h, w): 1 where the picture is kept. The nearest pixel counts."""
    return torch.nn.functional.interpolate(keep, size=shape[-2:])


def known_level(course: Course, i: int) -> float:
    """The noise level of the kept part after step i: that of the next call; 0 after the last."""
    return course.sigmas[i + 1] if i + 2 < len(course.sigmas) else 0.0


def rounded_pictures(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W), about in [-1, 1] -> RGB, rounded to 8 bits, half to even."""
    values = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy()
    return [Image.fromarray(rows) for rows in (255 * values).round().astype(np.uint8)]
