"""CompVis's scripts txt2img.py and img2img.py (2022).

img2img adds the noise one level above its first call. Source: scripts/, ldm/models/diffusion/.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

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
from minisd.dialects.diffusers import resized
from minisd.dialects.drawing import Program
from minisd.dialects.levels import ContinuousTime
from minisd.dialects.network import Texts, plain_texts
from minisd.dialects.solvers import dpm_solver_pp
from minisd.recipes.recipe import Recipe
from minisd.samplers import ddim, plms
from minisd.stable_diffusion import StableDiffusion

OPTIONS = noise_options("GPU") | {
    "eta": Option(0.0, (0.0, 1.0), "--ddim_eta"),
    "batch": Option(1, (1, 64), "--n_samples, of one draw of noise"),
    "iteration": Option(1, (1, 100), "which of --n_iter: the random numbers go on"),
}
NAMES = {"ddim": "ddim", "plms": "plms", "dpm_solver": "k_dpmpp_2"}


def course(recipe: Recipe, has_image: bool) -> Course:
    options = settings_of(recipe, OPTIONS)
    name = own_name("sampler", recipe.sampler, dict.fromkeys(NAMES.values()), "CompVis's scripts")
    table, steps = levels.table(), recipe.steps
    if recipe.negative_prompt:
        raise ValueError("CompVis's scripts have no negative prompt")
    if recipe.schedule not in (None, "ddim", "ddim_original"):
        raise ValueError(f"CompVis's scripts have no schedule {recipe.schedule!r}: leave it out")
    draws = Draws(options["noise_source"], options["card"], batch=options["batch"])
    notes: list[str] = []
    if has_image:
        # The scripts draw the encoder's noise on the CPU, the rest on the GPU where there is one.
        on_cpu = draws.source == "CPU"
        posterior = 0 if on_cpu else None
        draws = Draws(draws.source, draws.card, int(on_cpu), 0, draws.batch, posterior=posterior)
        notes += [] if on_cpu else ["the encoder's noise is not known: its mean is used"]
    if name == "k_dpmpp_2":
        if has_image:
            raise ValueError("CompVis's img2img has no DPM-Solver: take the sampler ddim")
        sigmas, expected_t = ContinuousTime(table).run(1.0, steps)
        draws = replace(draws, before=options["iteration"] - 1)
        return Course(sigmas, sigmas, dpm_solver_pp, expected_t.__getitem__, draws,
                      scaled_back=True, **unit_start(sigmas[0]))  # fmt: skip

    ts = timesteps(steps)
    sigma_of = table.sigmas.tolist()
    expected_t = {sigma_of[t]: float(t) for t in ts}
    full_list = [*(sigma_of[t] for t in reversed(ts)), sigma_of[0]]
    sampler = plms if name == "plms" else partial(ddim, eta=options["eta"])
    sigmas, start = full_list, unit_start(full_list[0])
    if has_image:
        if name == "plms":
            raise ValueError("CompVis's img2img has no PLMS: take the sampler ddim")
        t_enc = int(recipe.strength * steps)
        if t_enc >= len(ts):
            raise ValueError(f"CompVis's img2img fails at strength {recipe.strength:g} here")
        inserted = sigma_of[ts[t_enc]]
        sigmas = full_list[len(ts) - t_enc :] if t_enc else [inserted]
        start = scaled_start(inserted, sigmas[0])
        notes.append("the noise is added one level above the first call (as that program does)")
    # A draw for the start, and one a step even at eta 0; PLMS takes two in its first step.
    per_iteration = 1 + (len(sigmas) - 1) + (1 if name == "plms" else 0)
    draws = replace(draws, before=draws.before + (options["iteration"] - 1) * per_iteration)
    return Course(full_list, sigmas, sampler, expected_t.__getitem__, draws, scaled_back=True,
                  notes=notes, **start)  # fmt: skip


def timesteps(steps: int) -> list[int]:
    """Lowest first; more than `steps` of them where steps does not divide 1000."""
    ts = levels.leading(steps)
    if ts[-1] > 999:
        raise ValueError(f"CompVis's scripts fail with {steps} steps: 1000 would be a timestep")
    return ts


def texts(recipe: Recipe, sd: StableDiffusion) -> Texts:
    return plain_texts(sd, recipe.prompt, "")


def needs_uncond(recipe: Recipe) -> Callable[[int, float], bool]:
    guided = float(recipe.guidance) != 1
    return lambda call, sigma: guided


def size(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    if image is None:
        return recipe.width or sd.native_size, recipe.height or sd.native_size
    width, height = (side // 32 * 32 for side in image.size)
    return width, height


PROGRAM = Program(
    name="compvis",
    title="CompVis's scripts",
    options=OPTIONS,
    samplers=NAMES,
    schedules=("ddim",),
    course=course,
    texts=texts,
    needs_uncond=needs_uncond,
    size=size,
    resized=resized,
)
