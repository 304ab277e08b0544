"""InvokeAI before 2.3: 2.0 (October 2022, of the seed document) and 2.1 to 2.2.5.

Its k-samplers make a draw in img2img that they throw away. Source: ldm/invoke/generator/,
ldm/models/diffusion/ksampler.py, ddim.py, plms.py, sampler.py.
"""

from collections.abc import Callable

import torch
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
from minisd.dialects.invokeai_prompts import split_20, states_20, states_22
from minisd.dialects.network import Texts, constant
from minisd.dialects.solvers import plms_without_memory
from minisd.images import resize
from minisd.recipes.recipe import Recipe, size_of
from minisd.recipes.variations import slerp
from minisd.samplers import SAMPLERS, Sampler, ddim, plms
from minisd.stable_diffusion import StableDiffusion

KARRAS_BELOW = 30  # steps, from 2.1 on
OPTIONS = noise_options("GPU") | {
    "era": Option(
        None,
        (None, "dev", "2.0.0", "2.0.1", "2.0.2", "2.1", "2.2.5"),
        "the version; dev: the builds of early October 2022, of the seed document's figures",
    ),
}
ERAS = {"invokeai-2.0": "2.0.0", "invokeai-2.2": "2.2.5"}  # the default of each dialect
NAMES = {
    name: name
    for name in (
        *("k_lms", "ddim", "plms", "k_euler", "k_euler_a", "k_heun", "k_dpm_2", "k_dpm_2_a"),
        *("k_dpmpp_2", "k_dpmpp_2_a"),
    )
}


def course(recipe: Recipe, has_image: bool) -> Course:
    options = settings_of(recipe, OPTIONS)
    era = options["era"] or ERAS[recipe.dialect]
    name = own_name("sampler", recipe.sampler, NAMES, "InvokeAI")
    if "dpmpp" in name and era < "2.1":
        raise ValueError(f"InvokeAI {era} has no sampler {name}: it came with 2.1")
    if recipe.schedule not in (None, "model", "karras", "ddim"):
        raise ValueError(f"InvokeAI before 2.3 has no schedule {recipe.schedule!r}: leave it out")
    if recipe.strength in (0, 1) and has_image:
        raise ValueError("InvokeAI before 2.3 has strengths between 0 and 1, not these two")
    steps, t_enc = recipe.steps, int(recipe.strength * recipe.steps)
    draws = Draws(options["noise_source"], options["card"])
    notes = ["the encoder's noise is not known: its mean is used"] if has_image else []
    table = levels.table()
    if era == "dev":
        return dev_course(name, steps, t_enc if has_image else None, draws, notes)
    if name not in ("ddim", "plms"):
        karras = era == "2.0.0" or (era >= "2.1" and steps < KARRAS_BELOW)
        if recipe.schedule in ("model", "karras"):
            karras = recipe.schedule == "karras"
        full_list = (levels.karras if karras else levels.uniform)(table, steps)
        if has_image:
            draws = Draws(draws.source, draws.card, before=1, varied=False)
        sigmas = full_list[-t_enc - 1 :] if has_image else full_list
        gain = {} if len(sigmas) > 1 else {"noise_gain": 0.0}
        return Course(full_list, sigmas, SAMPLERS[name], table.t_of, draws, inserted=sigmas[0],
                      notes=notes, **gain)  # fmt: skip

    ts = timesteps(steps, era)
    sigma_of = table.sigmas.tolist()
    full_list = [*(sigma_of[t] for t in reversed(ts)), sigma_of[0]]
    expected_t = {sigma_of[t]: float(t) for t in ts}
    expected_t.setdefault(sigma_of[0], float(ts[0]))  # img2img's PLMS calls the network there, too
    sampler: Sampler = ddim
    if name == "plms":
        sampler = plms_without_memory if has_image else plms
    sigmas, start = full_list, unit_start(full_list[0])
    if has_image:
        place = t_enc - 1 if era == "2.2.5" else t_enc
        if place < 0 or place >= len(ts):
            raise ValueError(f"InvokeAI {era} fails at strength {recipe.strength:g} of {steps}")
        inserted = sigma_of[ts[place]]
        sigmas = full_list[len(ts) - t_enc :] if t_enc else [inserted]
        start = scaled_start(inserted, sigmas[0])
        if inserted != sigmas[0]:
            notes.append("the noise is added one level above the first call (as that program does)")
    return Course(full_list, sigmas, sampler, expected_t.__getitem__, draws, scaled_back=True,
                  notes=notes, **start)  # fmt: skip


def dev_course(name: str, steps: int, t_enc: int | None, draws: Draws, notes: list[str]) -> Course:
    """k-samplers between the end of September and 4 October 2022: a step fewer than asked for.

    img2img made a state of variance 1 at DDIM's level, and multiplied all of it by sigma.
    """
    if name in ("ddim", "plms"):
        raise ValueError(f"the era dev is spoken for k-samplers, not for {name}")
    table = levels.table()
    full_list = levels.karras(table, steps)
    run = steps if t_enc is None else t_enc
    # Its own slice: 0 steps run the whole list, and 1 runs none, from a state of zeros.
    sigmas = full_list[-run:]
    if t_enc is None:
        return Course(full_list, sigmas, SAMPLERS[name], table.t_of, draws, inserted=sigmas[0])
    inserted = float(table.sigmas[timesteps(steps, "2.0.0")[t_enc]])
    factor = sigmas[0] / (1 + inserted**2) ** 0.5
    note = "the picture is scaled with the noise (as that program does)"
    return Course(
        full_list, sigmas, SAMPLERS[name], table.t_of, draws, inserted=inserted,
        image_gain=factor, noise_gain=factor * inserted, notes=[*notes, note],
    )  # fmt: skip


def timesteps(steps: int, era: str) -> list[int]:
    """Lowest first. Before 2.0.2 they were multiples, without the 1 that CompVis adds."""
    stride = 1000 // steps
    if era < "2.0.2":
        return list(range(0, 1000, stride))
    return levels.leading(steps, steps)


def texts(recipe: Recipe, sd: StableDiffusion) -> Texts:
    """2.0: blends, and [words to avoid]; from 2.1 on also weights of words."""
    states = states_20 if recipe.dialect == "invokeai-2.0" else states_22
    cond, words = states(sd, recipe.prompt, recipe.normalize)
    negative = " ".join(filter(None, (words, recipe.negative_prompt)))
    uncond = sd.text_states(negative)
    tokens = sd.tokenizer([negative, split_20(recipe.prompt)[0]])
    return Texts([(1.0, constant(cond))], constant(uncond), [tokens[:1], tokens[1:]])


def needs_uncond(recipe: Recipe) -> Callable[[int, float], bool]:
    return lambda call, sigma: True


def size(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    return size_of(recipe, sd, image)


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return (image if image.size == size else resize(image, size)).convert("RGB")


def varied(noise: torch.Tensor, towards: torch.Tensor, weight: float) -> torch.Tensor:
    """Of the tensor as one vector. It has no effect with k-samplers in img2img, as there."""
    return torch.cat([slerp(weight, a, b) for a, b in zip(noise.split(1), towards.split(1))])


def program(name: str) -> Program:
    return Program(
        name=name,
        title="InvokeAI before 2.3",
        options=OPTIONS,
        samplers=NAMES,
        schedules=("model", "karras"),
        course=course,
        texts=texts,
        needs_uncond=needs_uncond,
        size=size,
        resized=resized,
        varied=varied,
    )


PROGRAMS = {name: program(name) for name in ERAS}
