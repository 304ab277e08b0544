"""The Recipe: all that decides a picture, as one frozen value; and the Job, ready to draw."""

import math
import random
import re
import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minisd.checkpoint.training_schedule import with_own_schedule
from minisd.guidance import GuidanceRule
from minisd.images import Picture, is_transparent, open_image, resize
from minisd.img2img import img2img
from minisd.inpaint import inpaint, keep_mask, share_redrawn
from minisd.more_samplers.adapters import find_sampler
from minisd.more_samplers.brownian import on_brownian_path
from minisd.more_samplers.guidance_rules import guidance_rule
from minisd.prompts.states import text_states, with_clip_skip
from minisd.prompts.syntax import escaped
from minisd.recipes.variations import varied_noise
from minisd.run import Observer, Result, choose
from minisd.samplers import Sampler
from minisd.schedule import Schedule, default_schedule, start_index
from minisd.stable_diffusion import StableDiffusion
from minisd.txt2img import txt2img

OWN = "minisd"
BARE, CONSTANTS = re.compile(r"[^\W\d][\w .+-]*"), ("True", "False", "None")
INIT_IMAGE = "INIT_IMAGE"  # stands for a file, in the recipe of a picture that does not name it
# [from:to:when], [words:when], [one|other], AND, BREAK
A1111_SYNTAX = re.compile(r"\[[^][]*[^][\d]:\s*[\d.]+\s*\]|\[[^][]*\|[^][]*\]|\b(AND|BREAK)\b")


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
    guidance_rule: str | None = None  # whose scale is `guidance`; a name, or FILE.py:FUNCTION
    seed: int | Sequence[int] | None = None
    negative_prompt: str = ""  # plain words, in addition to the [words to avoid] of the prompt
    width: int | None = None  # pixels; None: the model's native size, or the init image's own
    height: int | None = None
    fit: bool = False  # scale the init image to fit inside width x height
    paste: bool = True  # inpainting: put the kept pixels back
    normalize: bool = True  # scale a blend's weights to sum to 1
    clip_skip: int = 1  # AUTOMATIC1111's count: 2 leaves out the text encoder's last layer
    variations: tuple[tuple[int, float], ...] = ()  # (seed, weight): move the noise towards it
    dialect: str = OWN  # whose rules hold; minisd.DIALECTS has the names
    # The sampler's, such as eta; those of another dialect are in minisd/dialects.
    options: Mapping[str, Any] = field(default_factory=dict)
    # What read_recipe could not carry over.
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        start_index(self.steps, self.strength)
        for name in ("width", "height"):
            side = getattr(self, name)
            if side is not None and side < 1:
                raise ValueError(f"{name} must be 1 or more, not {side}")
        if self.clip_skip < 1:
            raise ValueError(f"clip_skip must be 1 or more, not {self.clip_skip}")
        if self.dialect not in DIALECTS:
            known = ", ".join(DIALECTS)
            raise ValueError(f"there is no dialect named {self.dialect!r}; choose from {known}")
        if isinstance(self.guidance, int | float) and not math.isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, not {self.guidance}")

    @property
    def guidance_used(self) -> float | str | GuidanceRule:
        """The guidance as img2img takes it. Raises ValueError for an unknown rule."""
        if self.guidance_rule is None:
            return self.guidance
        if not isinstance(self.guidance, int | float):
            raise ValueError(f"the scale of a guidance rule is a number, not {self.guidance}")
        return guidance_rule(self.guidance_rule, self.guidance)

    def functions(self) -> tuple[Sampler, Schedule, float | GuidanceRule]:
        """The sampler with its options, the schedule, and the guidance, as a run uses them.

        Raises ValueError for an unknown name or option, OSError if a FILE.py cannot be read.
        """
        dialect = DIALECTS[self.dialect]
        if dialect is not None:
            dialect.check(self)
            return choose(dialect.own_names(self).sampler, None, self.guidance_used)
        schedule = self.schedule or default_schedule(self.sampler)
        sampler = find_sampler(self.sampler)
        options = dict(self.options)
        if options.pop("brownian", False):
            check_options(self, sampler, options)
            sampler = partial(on_brownian_path(sampler), **options)
        elif options:
            check_options(self, sampler, options)
            sampler = partial(sampler, **options)
        return choose(sampler, schedule, self.guidance_used)

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
        """The prompt, with the negative prompt as [words to avoid], unless a switch has it."""
        if not self.negative_prompt or self.dialect != OWN:
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
        words += ["--guidance-rule", self.guidance_rule] if self.guidance_rule else []
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
        if self.clip_skip != 1:
            words += ["--clip-skip", f"{self.clip_skip}"]
        if self.variations:
            words += ["-V", ",".join(f"{seed}:{weight!r}" for seed, weight in self.variations)]
        if self.dialect != OWN:
            words += ["--dialect", self.dialect]
            words += ["--negative", self.negative_prompt] if self.negative_prompt else []
        for option, value in self.options.items():
            words += ["--set", f"{option}={option_text(value)}"]
        return words


def option_text(value: Any) -> str:
    """An option's value as --set reads it: a Python literal, or words without quotation marks."""
    if isinstance(value, str) and BARE.fullmatch(value) and value not in CONSTANTS:
        return value
    return repr(value)


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
    image: Image.Image | Tensor | None  # RGB, at its final size; or a latent (1, 4, h, w)
    mask: Tensor | None  # inpainting: (1, 1, H, W), 1 where the picture is kept
    size: tuple[int, int]  # width and height of the result in pixels
    context: Tensor  # (1, 77, C), the prompt's text states; empty where a dialect makes its own
    uncond: Tensor  # the negative prompt's

    @property
    def inpaints(self) -> bool:
        return self.mask is not None

    def describe_mask(self) -> str:
        """A line on how much an inpainting redraws; empty if the job does not inpaint."""
        if self.mask is None:
            return ""
        return f"inpainting: {share_redrawn(self.mask)} of the picture is redrawn"

    @property
    def schedule(self) -> str | Schedule | None:
        """The recipe's schedule; for the name `file`, the one of a file that has its own."""
        name = self.recipe.schedule
        return getattr(self.sd.unet, "schedule", name) if name == "file" else name

    def draw(self, observe: Observer | None = None) -> Result:
        recipe = self.recipe
        dialect = DIALECTS[recipe.dialect]
        if dialect is not None:
            return dialect.draw(self, observe)
        sampler, schedule, guidance = replace(recipe, schedule=self.schedule).functions()
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
        if self.mask is None or isinstance(self.image, Tensor):
            return img2img(self.sd, self.context, self.image, **settings)
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


@dataclass(frozen=True)
class Dialect:
    """How another program draws a recipe."""

    own_names: Callable[[Recipe], Recipe]  # with minisd's names in place of the program's
    check: Callable[[Recipe], None]  # raises ValueError for what the program does not have
    prepare: Callable[
        [Recipe, StableDiffusion, Picture | Tensor | None, Picture | Tensor | None], Job
    ]
    draw: Callable[[Job, Observer | None], Result]
    sigmas: Callable[[Recipe], list[float]]  # the levels of the run
    summary: Callable[[Recipe], str]  # what it does with the recipe, in a line
    describe: Callable[[Recipe], str]  # the same in many lines
    next_seed: Callable[[int], int]  # of the next picture of a series


# minisd's own is None: this file. minisd/__init__.py adds those of minisd/dialects/.
DIALECTS: dict[str, Dialect | None] = {OWN: None}


def prepare(
    recipe: Recipe,
    sd: StableDiffusion,
    image: Picture | Tensor | None = None,
    mask: Picture | None = None,
) -> Job:
    """Open and resize the pictures, encode the prompt, draw the seed if it is None.

    `image` (a picture or a latent) and `mask` replace the recipe's own files. The job inpaints if
    there is a mask, or if the picture is transparent somewhere: minisd.inpaint.keep_mask has the
    rules. A warning says what was changed or looks wrong. Raises ValueError, OSError.
    """
    dialect = DIALECTS[recipe.dialect]
    if dialect is not None:
        return dialect.prepare(recipe, sd, image, mask)
    sd = with_own_schedule(sd) if recipe.schedule == "file" else sd
    image = recipe.image if image is None else image
    mask = recipe.mask if mask is None else mask
    if mask is not None and image is None:
        raise ValueError("a mask needs an init image")
    init_image, keep = None, None
    if isinstance(image, Tensor):
        if mask is not None:
            raise ValueError("inpainting needs a picture to draw on, not a latent")
        init_image = image
        size = (image.shape[-1] * sd.vae.factor, image.shape[-2] * sd.vae.factor)
    else:
        original = None if image is None else open_image(image)
        size = size_of(recipe, sd, original)
        box = (recipe.width or sd.native_size, recipe.height or sd.native_size)
        width, height = box if recipe.fit and original else size
        recipe = replace(recipe, width=width, height=height)
        if original is not None:
            picture = original if original.size == size else resize(original, size)
            if mask is not None or is_transparent(picture):
                keep = keep_mask(picture, mask, original.size)
            init_image = picture.convert("RGB")
    if match := A1111_SYNTAX.search(recipe.prompt):
        note = f"{match[0]!r} in the prompt is AUTOMATIC1111's syntax: here it is plain words"
        warnings.warn(note, stacklevel=2)
    reader = with_clip_skip(sd, recipe.clip_skip)
    context, words = text_states(reader, recipe.prompt, normalize=recipe.normalize)
    uncond = reader.text_states(" ".join(filter(None, (words, recipe.negative_prompt))))
    if recipe.seed is None:
        recipe = replace(recipe, seed=random.SystemRandom().randrange(2**32 - 1))
    return Job(sd, recipe, init_image, keep, size, context, uncond)


def check_options(recipe: Recipe, sampler: Sampler, options: Mapping[str, Any]) -> None:
    names = list(signature(sampler).parameters)[3:]
    known = [name for name in names if name != "generator"]
    known += ["brownian"] if "generator" in names else []
    for option in options:
        if option not in known:
            there_are = f"it has {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"{name_of(recipe.sampler)} has no option {option!r}; {there_are}")


def size_of(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    """Width and height of the result, multiples of sd.multiple. Warns about what it changes.

    Without `fit`, both sides are rounded down. With it, the picture is scaled to fit inside the
    recipe's width x height, and its sides are rounded to the nearest multiples inside.
    """
    asked = (recipe.width or sd.native_size, recipe.height or sd.native_size)

    def floored(width: int, height: int) -> tuple[int, int]:
        w, h = (side // sd.multiple * sd.multiple for side in (width, height))
        return max(w, sd.multiple), max(h, sd.multiple)

    name = recipe.image or "the init image"
    if image is None:
        old, size, name = asked, floored(*asked), "the picture"
        note = f"becomes {size[0]}x{size[1]}, multiples of {sd.multiple}"
    elif recipe.fit:
        old, box = image.size, floored(*asked)
        size = fitted(image.size, box, sd.multiple)
        note = f"was scaled to {size[0]}x{size[1]}, to fit into {asked[0]}x{asked[1]}"
    else:
        old, size = image.size, floored(*image.size)
        note = f"becomes {size[0]}x{size[1]}, multiples of {sd.multiple}"
        if (recipe.width or recipe.height) and asked != size:
            warnings.warn("width and height count for an init image only with --fit", stacklevel=3)
    if image is not None:
        change = abs(math.log(size[0] / size[1] * old[1] / old[0]))
        note += f"; its proportions change by {math.expm1(change):.0%}" if change > 0.03 else ""
    if size != old:
        warnings.warn(f"{name}: {old[0]}x{old[1]} {note}", stacklevel=3)
    if max(size) < sd.native_size:
        trained = f"the {sd.native_size} pixels a side that the model was trained on"
        warnings.warn(
            f"{size[0]}x{size[1]} is smaller than {trained}: it may draw badly", stacklevel=3
        )
    times = size[0] * size[1] / sd.native_size**2
    if times > 4:
        # Convolutions take time in proportion to the area; attention, to its square.
        cost = f"a step takes {times:,.0f} to {times**2:,.0f} times as long, and there are up to"
        remedy = "Take smaller -W and -H" if image is None or recipe.fit else "--fit scales it down"
        own = f"{sd.native_size}x{sd.native_size}, the model's own size"
        text = f"{size[0]}x{size[1]} is {times:,.0f} times as large as {own}"
        warnings.warn(f"{text}: {cost} {recipe.steps}. {remedy}", stacklevel=3)
    return size


def fitted(size: tuple[int, int], box: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size scaled to fit inside a box of multiples, each side at the nearest multiple."""
    scale = min(box[0] / size[0], box[1] / size[1])
    w, h = (math.floor(side * scale / multiple + 0.5) * multiple for side in size)
    return max(w, multiple), max(h, multiple)
