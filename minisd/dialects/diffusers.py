"""diffusers 0.42's pipelines, with the scheduler of SD 1.5 and what `from_config` makes of others.

Its LMS and PNDM are wrong in img2img, and spoken as they are. Source: schedulers/scheduling_*.py,
pipelines/stable_diffusion/.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from minisd.dialects import levels
from minisd.dialects.course import (
    Course,
    Draws,
    Option,
    noise_options,
    own_name,
    scaled_start,
    settings_of,
    unit_start,
)
from minisd.dialects.drawing import Program
from minisd.dialects.network import Texts, plain_texts
from minisd.dialects.solvers import euler_a_always, heun_in_halves, lms_by_position, pndm
from minisd.more_samplers.multistep import uni_pc
from minisd.recipes.recipe import Recipe
from minisd.samplers import Sampler, ddim, k_dpmpp_2, k_euler
from minisd.stable_diffusion import StableDiffusion

SPACINGS = ("leading", "linspace", "trailing")
OPTIONS = noise_options("CPU") | {
    "eta": Option(0.0, (0.0, 1.0), "of DDIM"),
    "spacing": Option(None, (None, *SPACINGS), "timestep_spacing; None: the scheduler's own"),
    "batch": Option(1, (1, 64), "num_images_per_prompt, of one draw of noise"),
}
NAMES = {
    "PNDMScheduler": "plms",
    "DDIMScheduler": "ddim",
    "EulerDiscreteScheduler": "k_euler",
    "EulerAncestralDiscreteScheduler": "k_euler_a",
    "LMSDiscreteScheduler": "k_lms",
    "HeunDiscreteScheduler": "k_heun",
    "DPMSolverMultistepScheduler": "k_dpmpp_2",
    "UniPCMultistepScheduler": "uni_pc",
}
SCHEDULES = ("model", "karras")
SCALED = ("plms", "ddim", "k_dpmpp_2", "uni_pc")  # whose states have variance 1
LEADING = ("plms", "ddim")


def course(recipe: Recipe, has_image: bool) -> Course:
    options = settings_of(recipe, OPTIONS)
    own = dict.fromkeys([*NAMES.values(), "dpmpp_2m"])
    name = own_name("sampler", recipe.sampler, own, "diffusers")
    name = "k_dpmpp_2" if name == "dpmpp_2m" else name
    schedule = recipe.schedule if recipe.schedule != "leading" else "model"
    if recipe.schedule == "leading":
        options["spacing"] = "leading"
    own_name("schedule", schedule or "model", dict.fromkeys(SCHEDULES), "diffusers")
    inpaints = recipe.mask is not None
    full_list, expected_t = grid(name, recipe.steps, options["spacing"], schedule == "karras")
    skipped = 0
    if has_image:
        skipped = recipe.steps - min(int(recipe.steps * recipe.strength), recipe.steps)
    sigmas, notes = full_list[skipped:], []
    from_noise = not has_image or (inpaints and recipe.strength == 1)
    if name == "k_lms" and has_image and 0 < skipped < recipe.steps:
        notes.append(
            "LMS takes weights for slopes that it does not have yet (as that program does)"
        )
    if name == "plms" and has_image and 0 < skipped < recipe.steps:
        notes.append("PNDM is one level off from its third call on (as that program does)")
    if len(sigmas) < 2 or skipped == recipe.steps:
        sigmas = [0.0]
    elif name == "plms":
        sigmas = pndm_levels(recipe.steps, full_list)[skipped:]

    draws = Draws(options["noise_source"], options["card"], batch=options["batch"])
    if has_image:  # draw 1 is the encoder's; inpainting makes another for the masked picture
        between = 1 if inpaints else 0
        draws = Draws(draws.source, draws.card, 1, between, draws.batch, posterior=0)
    start: dict[str, Any] = {"inserted": sigmas[0]}
    if from_noise:
        start = unit_start(sigmas[0])
        if name not in SCALED:
            is_leading = spacing_of(name, options["spacing"]) == "leading"
            start["noise_gain"] = (full_list[0] ** 2 + is_leading) ** 0.5
    elif name in SCALED:
        start = scaled_start(sigmas[0], sigmas[0])
    if sigmas == [0.0]:
        start = {"inserted": 0.0, "noise_gain": 0.0}
    listed = {"plms": pndm_levels(recipe.steps, full_list), "k_heun": heun_levels(full_list)}
    return Course(
        listed.get(name, full_list), sigmas, sampler_for(name, full_list[:skipped], options["eta"]),
        expected_t.__getitem__, draws, scaled_back=name in SCALED, notes=notes, **start,
    )  # fmt: skip


def spacing_of(name: str, spacing: str | None) -> str:
    return spacing or ("leading" if name in LEADING else "linspace")


def grid(
    name: str, n: int, spacing: str | None, karras: bool
) -> tuple[list[float], dict[float, float]]:
    """(levels, the timestep that the network gets at each): highest first."""
    table = levels.table("diffusers")
    sigmas = table.sigmas.double().numpy()
    spacing = spacing_of(name, spacing)
    multistep = name in ("k_dpmpp_2", "uni_pc")
    if n > 999:
        raise ValueError(f"diffusers has schedules of 1 to 999 steps here, not {n}")
    if spacing == "leading" and multistep:
        stride = 1000 // (n + 1)
        timesteps = np.round(np.arange(n + 1) * stride)[::-1][:-1] + 1.0
    elif spacing == "leading":
        timesteps = np.array(levels.leading(n, n)[::-1], dtype=np.float64)
    elif spacing == "trailing":
        timesteps = np.round(np.arange(1000, 0, -1000 / n)) - 1
    elif multistep:
        timesteps = np.round(np.linspace(0, 999, n + 1))[::-1][:-1]
    elif name in LEADING:
        timesteps = np.round(np.linspace(0, 999, n))[::-1]
    else:
        timesteps = np.float32(np.linspace(0, 999, n, dtype=np.float32)[::-1]).astype(np.float64)
    values = np.interp(timesteps, np.arange(1000), sigmas)  # linear in sigma, not in its logarithm
    if name in LEADING and any(a - b != 1000 // n for a, b in pairwise(timesteps)):
        # They go down by 1000 // n, whatever the next timestep in the list is.
        raise ValueError(f"{n} steps of {name} with the spacing {spacing} are not spoken here")
    if karras and name in LEADING:
        raise ValueError(f"diffusers has no karras schedule for {name}")
    if karras:
        ends = (table.low, table.high) if multistep else (float(values[-1]), float(values[0]))
        values = np.array(levels.karras_of_diffusers(*ends, n), dtype=np.float64)
        timesteps = np.array([table.t_of(float(sigma)) for sigma in values])
        timesteps = np.round(timesteps) if multistep else timesteps
    last = float(table.sigmas[0]) if name in LEADING else 0.0
    values = [*levels.rounded(values), last]
    expected_t = dict(zip(values[:-1], (float(np.float32(t)) for t in timesteps)))
    return values, expected_t


def pndm_levels(n: int, full_list: list[float]) -> list[float]:
    """PNDM's levels, a call each: the second one is there twice."""
    return [*full_list[:2], *full_list[1:]] if n > 1 else full_list


def heun_levels(full_list: list[float]) -> list[float]:
    """Heun's list: a level for each call."""
    return [full_list[0], *(sigma for sigma in full_list[1:-1] for _ in range(2)), full_list[-1]]


def sampler_for(name: str, before: list[float], eta: float) -> Sampler:
    return {
        "plms": pndm,
        "ddim": partial(ddim, eta=eta),
        "k_euler": k_euler,
        "k_euler_a": euler_a_always,
        "k_lms": partial(lms_by_position, before=before),
        "k_heun": heun_in_halves,
        "k_dpmpp_2": k_dpmpp_2,
        "uni_pc": partial(uni_pc, order=2, variant="bh2", lower_order_final=True),
    }[name]


def texts(recipe: Recipe, sd: StableDiffusion) -> Texts:
    return plain_texts(sd, recipe.prompt, recipe.negative_prompt, recipe.clip_skip)


def needs_uncond(recipe: Recipe) -> Callable[[int, float], bool]:
    guided = float(recipe.guidance) > 1
    return lambda call, sigma: guided


def size(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    if image is None:
        return recipe.width or sd.native_size, recipe.height or sd.native_size
    width, height = (side // 8 * 8 for side in image.size)
    return width, height


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    image = image.convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


PROGRAM = Program(
    name="diffusers",
    title="diffusers",
    options=OPTIONS,
    samplers=NAMES,
    schedules=SCHEDULES,
    course=course,
    texts=texts,
    needs_uncond=needs_uncond,
    size=size,
    resized=resized,
    rounded=True,
    repaints_white=True,
)
