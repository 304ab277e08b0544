"""The Recipe: all that decides a picture, as one frozen value; and the Job, ready to draw."""

import math
import random
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from minisd.guidance import GuidanceRule
from minisd.images import Picture, is_transparent, open_image, resize
from minisd.img2img import img2img
from minisd.inpaint import inpaint
from minisd.prompts.states import text_states
from minisd.prompts.syntax import escaped
from minisd.recipes.variations import varied_noise
from minisd.run import Observer, Result, choose
from minisd.samplers import Sampler
from minisd.schedule import Schedule, start_index
from minisd.stable_diffusion import StableDiffusion
from minisd.txt2img import txt2img


@dataclass(frozen=True)
class Recipe:
    """The settings of one picture. Given the same checkpoint and init image, they decide it.

    Fields with the names of img2img's arguments mean the same. `prompt` has the syntax of
    minisd/prompts (weights, blends, [words to avoid]). Raises ValueError for a value out of range.
    """

    prompt: str
    image: str | Path | None = None  # the init image's file; None: text-to-image
    mask: str | Path | None = None
    strength: float = 0.75
    steps: int = 50
    sampler: str | Sampler = "k_lms"
    schedule: str | Schedule | None = None  # None: the sampler's own
    guidance: float | str | GuidanceRule = 7.5
    seed: int | Sequence[int] | None = None
    negative_prompt: str = ""  # plain words, in addition to the [words to avoid] of the prompt
    width: int | None = None  # pixels; None: the model's native size, or the init image's own
    height: int | None = None
    fit: bool = False  # scale the init image to fit inside width x height
    paste: bool = True  # inpainting: put the kept pixels back
    normalize: bool = True  # scale a blend's weights to sum to 1
    variations: tuple[tuple[int, float], ...] = ()  # (seed, weight): move the noise towards it
    dialect: str = "minisd"
    options: Mapping[str, Any] = field(default_factory=dict)  # the sampler's, such as eta
    notes: tuple[str, ...] = field(
        default=(), compare=False
    )  # what read_recipe could not carry over

    def __post_init__(self) -> None:
        start_index(self.steps, self.strength)
        if self.dialect != "minisd":
            raise ValueError(f"there is no dialect named {self.dialect!r}; choose from minisd")
        if isinstance(self.guidance, int | float) and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, not {self.guidance}")

    def draw(
        self,
        sd: StableDiffusion,
        image: Picture | Tensor | None = None,
        mask: Picture | None = None,
        observe: Observer | None = None,
    ) -> Result:
        """The picture. `image` (a picture or a latent) and `mask` replace the recipe's own files.

        Raises ValueError and OSError as img2img does.
        """
        return prepare(self, sd, image, mask).draw(observe)

    def command(self) -> str:
        """The shell command that draws this recipe."""
        prompt, words = self.full_prompt, self.switches()
        words = [*words, "--", prompt] if prompt.startswith("-") else [prompt, *words]
        return shlex.join(["minisd", "img2img" if self.image else "txt2img", *words])

    @property
    def full_prompt(self) -> str:
        """The prompt, with the negative prompt as [words to avoid]."""
        if not self.negative_prompt:
            return self.prompt
        return f"{self.prompt} [{escaped(self.negative_prompt)}]"

    def switches(self) -> list[str]:
        """The command line's switches for everything but the prompt, in InvokeAI's order."""
        words = ["-s", f"{self.steps}"]
        if self.seed is not None:
            seeds = self.seed if isinstance(self.seed, Sequence) else [self.seed]
            words += ["-S", ",".join(map(str, seeds))]
        for switch, value in (("-W", self.width), ("-H", self.height)):
            words += [] if value is None else [switch, f"{value}"]
        words += ["-C", name_of(self.guidance)]
        if self.image:
            words += ["-I", f"{self.image}"]
        words += ["-A", name_of(self.sampler)]
        if self.image:
            words += ["--fit"] if self.fit else []
            words += ["-M", f"{self.mask}"] if self.mask else []
            words += ["-f", repr(self.strength)]
            words += [] if self.paste else ["--no_paste"]
        if self.schedule:
            words += ["--schedule", name_of(self.schedule)]
        if not self.normalize:
            words.append("-x")
        if self.variations:
            words += ["-V", ",".join(f"{seed}:{weight!r}" for seed, weight in self.variations)]
        for option, value in self.options.items():
            words += ["--set", f"{option}={value!r}"]
        return words


def name_of(value: Any) -> str:
    """A name or a number as it is written; a function's name."""
    if isinstance(value, str):
        return value
    return getattr(value, "__name__", repr(value))


# ---- ready to draw -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A recipe with all that it needs. `replace(job, recipe=...)` shares the pictures and texts."""

    sd: StableDiffusion
    recipe: Recipe  # with the seed, width and height that are used
    image: Image.Image | Tensor | None  # at its final size; or a latent (1, 4, h, w)
    mask: Image.Image | None
    size: tuple[int, int]  # width and height of the result in pixels
    context: Tensor  # (1, 77, C), the prompt's text states
    uncond: Tensor  # the negative prompt's

    @property
    def inpaints(self) -> bool:
        hidden = isinstance(self.image, Image.Image) and is_transparent(self.image)
        return hidden or (self.mask is not None and self.image is not None)

    def draw(self, observe: Observer | None = None) -> Result:
        recipe = self.recipe
        sampler, schedule, guidance = choose(recipe.sampler, recipe.schedule, recipe.guidance)
        if recipe.options:
            check_options(recipe, sampler)
            sampler = partial(sampler, **recipe.options)
        settings: dict[str, Any] = {
            "steps": recipe.steps,
            "sampler": sampler,
            "schedule": schedule,
            "guidance": guidance,
            "seed": recipe.seed,
            "negative_prompt": self.uncond,
            "noise": self.noise(),
            "observe": observe,
        }
        if self.image is None:
            width, height = self.size
            return txt2img(self.sd, self.context, width=width, height=height, **settings)
        settings["strength"] = recipe.strength
        if not self.inpaints:
            return img2img(self.sd, self.context, self.image, **settings)
        if isinstance(self.image, Tensor):
            raise ValueError("inpainting needs a picture to draw on, not a latent")
        return inpaint(self.sd, self.context, self.image, self.mask, paste=recipe.paste, **settings)

    def noise(self) -> Tensor | None:
        """(B, 4, h, w), moved towards other seeds' noise; None: the seed's own."""
        if not self.recipe.variations:
            return None
        width, height = (side // self.sd.vae.factor for side in self.size)
        shape = (1, 4, height, width)
        seed = self.recipe.seed
        seeds = [seed] if isinstance(seed, int) else seed or []
        return torch.cat([varied_noise(n, self.recipe.variations, shape) for n in seeds])


def prepare(
    recipe: Recipe,
    sd: StableDiffusion,
    image: Picture | Tensor | None = None,
    mask: Picture | None = None,
) -> Job:
    """Open and resize the pictures, encode the prompt, draw the seed if it is None.

    `image` (a picture or a latent) and `mask` replace the recipe's own files. A warning says what
    was changed or looks wrong. Raises ValueError, OSError.
    """
    if image is None and recipe.image is not None:
        image = open_init_image(recipe)
    mask = mask if mask is not None else recipe.mask
    if mask is not None and image is None:
        raise ValueError("a mask needs an init image")
    mask_image = None if mask is None else open_image(mask)
    if isinstance(image, Tensor):
        size = (image.shape[-1] * sd.vae.factor, image.shape[-2] * sd.vae.factor)
    else:
        image = None if image is None else open_image(image)
        size = size_of(recipe, sd, image)
        box = (recipe.width or sd.native_size, recipe.height or sd.native_size)
        width, height = box if recipe.fit and image is not None else size
        recipe = replace(recipe, width=width, height=height)
        if image is not None and image.size != size:
            image = resize(image, size)
    context, words = text_states(sd, recipe.prompt, normalize=recipe.normalize)
    uncond = sd.text_states(" ".join(filter(None, (words, recipe.negative_prompt))))
    if recipe.seed is None:
        recipe = replace(recipe, seed=random.SystemRandom().randrange(2**32 - 1))
    return Job(sd, recipe, image, mask_image, size, context, uncond)


def check_options(recipe: Recipe, sampler: Sampler) -> None:
    known = [name for name in signature(sampler).parameters][3:]
    known = [name for name in known if name != "generator"]
    for option in recipe.options:
        if option not in known:
            there_are = f"it has {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"{name_of(recipe.sampler)} has no option {option!r}; {there_are}")


def open_init_image(recipe: Recipe) -> Image.Image:
    """The recipe's init image. Warns if inpainting would start from erased colours."""
    assert recipe.image is not None
    image = open_image(recipe.image)
    if recipe.mask is None and is_transparent(image) and colours_erased(image):
        warnings.warn(
            f"{recipe.image} has no colours under its transparency: inpainting starts from plain "
            "black or white there. Save it with the colours of transparent pixels kept",
            stacklevel=3,
        )
    return image


def colours_erased(image: Image.Image) -> bool:
    """Whether all fully transparent pixels are pure black or pure white.

    Some programs erase the colours there. Then inpainting has nothing to start from.
    """
    values = np.asarray(image.convert("RGBA")).reshape(-1, 4)
    sums = values[values[:, 3] == 0, :3].sum(axis=1, dtype=int)
    return len(sums) > 0 and bool(np.isin(sums, (0, 3 * 255)).all())


def size_of(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    """Width and height of the result, multiples of sd.multiple. Warns about what it changes."""
    asked = (recipe.width or sd.native_size, recipe.height or sd.native_size)

    def floored(width: float, height: float) -> tuple[int, int]:
        w, h = (int(n + 1e-6) // sd.multiple * sd.multiple for n in (width, height))
        return max(w, sd.multiple), max(h, sd.multiple)

    if image is None:
        size, old, name = floored(*asked), asked, "the picture"
    elif recipe.fit:
        scale = min(asked[0] / image.width, asked[1] / image.height)
        size, old, name = floored(image.width * scale, image.height * scale), image.size, ""
        if size != old:
            sizes = f"{old[0]}x{old[1]} was scaled to {size[0]}x{size[1]}"
            box = f"to fit into {asked[0]}x{asked[1]}"
            warnings.warn(f"{recipe.image or 'the init image'}: {sizes}, {box}", stacklevel=3)
            old = size
    else:
        size, old, name = floored(*image.size), image.size, recipe.image or "the init image"
        if (recipe.width or recipe.height) and asked != size:
            warnings.warn("width and height count for an init image only with --fit", stacklevel=3)
    if size != old:
        sizes = f"{old[0]}x{old[1]} becomes {size[0]}x{size[1]}, multiples of {sd.multiple}"
        warnings.warn(f"{name}: {sizes}", stacklevel=3)
    if max(size) < sd.native_size:
        trained = f"the {sd.native_size} pixels a side that the model was trained on"
        warnings.warn(
            f"{size[0]}x{size[1]} is smaller than {trained}: it may draw badly", stacklevel=3
        )
    return size
