"""ComfyUI, March 2026 (0.16.4), and the eras before where its noise or its encoder had other rules.

It counts strength in levels of a longer schedule, and rounds timesteps. Source:
comfy/samplers.py, model_sampling.py, k_diffusion/sampling.py, sample.py.
"""

import math
from collections.abc import Callable
from functools import partial

from PIL import Image

from minisd.dialects import comfyui_prompts, levels
from minisd.dialects.course import (
    Course,
    Draws,
    Option,
    noise_options,
    own_name,
    settings_of,
)
from minisd.dialects.drawing import Program
from minisd.dialects.levels import Schedule
from minisd.dialects.network import Texts
from minisd.dialects.solvers import lms_to_x0, uni_pc_corrected
from minisd.recipes.comfyui import NAMES
from minisd.recipes.recipe import Recipe
from minisd.samplers import SAMPLERS, Sampler, k_euler
from minisd.stable_diffusion import StableDiffusion

# When the ancestral samplers' noise on a CPU changed, and when the encoder began to give its mean.
ERAS = ("2025-12-26", "2025-06-27", "2025-01-06", "2024")
OPTIONS = noise_options("CPU") | {
    "era": Option(ERAS[0], ERAS, "the day since which the rules hold; 2024: before all others"),
    "batch": Option(1, (1, 64), "pictures of one draw of noise"),
    "start_step": Option(None, (0, 10_000), "KSampler (Advanced): start_at_step"),
    "end_step": Option(None, (0, 10_000), "KSampler (Advanced): end_at_step"),
    "full_denoise": Option(False, (False, True), "the last of these steps ends at 0"),
    "gpu_tree": Option(False, (False, True), "the samplers dpmpp_..._sde_gpu: their tree's noise"),
    "eta": Option(None, (0.0, 100.0), "of the ancestral and SDE samplers (1)"),
}
TREE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
DISCARDING = ("k_dpm_2", "k_dpm_2_a", "uni_pc", "uni_pc_bh2")
SCHEDULES: dict[str, Schedule] = {
    "normal": levels.uniform,
    "model": levels.uniform,
    "karras": levels.karras,
    "exponential": levels.exponential,
    "sgm_uniform": levels.sgm_uniform,
    "simple": levels.simple,
    "ddim_uniform": levels.ddim_uniform,
    "beta": levels.beta_in_t,
    "kl_optimal": levels.kl_optimal_to_zero,
    "linear_quadratic": levels.linear_quadratic,
}


def course(recipe: Recipe, has_image: bool) -> Course:
    options = settings_of(recipe, OPTIONS)
    own = [*NAMES.values(), "dpmpp_2m"]
    name = own_name("sampler", recipe.sampler, dict.fromkeys(own), "ComfyUI")
    name = "k_dpmpp_2" if name == "dpmpp_2m" else name
    schedule = own_name("schedule", recipe.schedule or "normal", SCHEDULES, "ComfyUI")
    table = levels.table("float64")
    denoise = recipe.strength if has_image else 1.0
    full_list, sigmas = run_of(recipe.steps, denoise, schedule, name in DISCARDING, options)
    if not sigmas:  # nothing is denoised, and no noise is added
        return Course(full_list, [0.0], k_euler, table.nearest, Draws(), 0.0, noise_gain=0.0)

    high = table.high
    is_top = math.isclose(sigmas[0], high, rel_tol=1e-5) or sigmas[0] > high
    era, notes = options["era"], []
    if has_image and era < ERAS[1]:
        notes = ["the encoder's noise is not known: its mean is used"]
    if is_top and has_image:
        notes.append(
            "at the highest level the picture stays in at full weight (as that program does)"
        )
    sampler, run = sampler_for(name, sigmas, options["eta"])
    return Course(
        full_list, run, sampler, table.nearest, draws_of(name, sigmas, options),
        inserted=sigmas[0],
        noise_gain=(1 + sigmas[0] ** 2) ** 0.5 if is_top else None,
        notes=notes,
    )  # fmt: skip


def run_of(
    steps: int, denoise: float, schedule: str, discards: bool, options: dict
) -> tuple[list[float], list[float]]:
    """The whole list and the run's."""

    def make(n: int) -> list[float]:
        made = SCHEDULES[schedule](levels.table("float64"), n + 1 if discards else n)
        return made[:-2] + made[-1:] if discards else made

    if denoise <= 0:
        return make(steps), []
    full_list = make(steps if denoise > 0.9999 else int(steps / denoise))
    sigmas = full_list if denoise > 0.9999 else full_list[-(steps + 1) :]
    start, end = options["start_step"], options["end_step"]
    if end is not None and end < len(sigmas) - 1:
        sigmas = sigmas[: end + 1]
        if options["full_denoise"]:
            sigmas = [*sigmas[:-1], 0.0]
    if start is not None:
        if start >= len(sigmas) - 1:
            return full_list, []
        sigmas = sigmas[start:]
    return full_list, sigmas


def sampler_for(name: str, sigmas: list[float], eta: float | None) -> tuple[Sampler, list[float]]:
    """The sampler with its options, and the levels that it goes down."""
    sampler: Sampler = {"ddim": k_euler, "k_lms": lms_to_x0}.get(name) or SAMPLERS[name]
    if name.startswith("uni_pc"):
        order = max(1, min(3, len(sigmas) - 2))
        variant = "bh2" if name.endswith("bh2") else "bh1"
        sampler = partial(uni_pc_corrected, order=order, variant=variant)
        return sampler, [*sigmas[:-1], sigmas[-1] or 0.001]
    if eta is not None and (name.endswith("_a") or name in TREE):
        sampler = partial(sampler, eta=eta)
    return sampler, sigmas


def draws_of(name: str, sigmas: list[float], options: dict) -> Draws:
    """The insertion noise is a CPU's draw always; the steps' noise has had three rules there."""
    source, card, batch = options["noise_source"], options["card"], options["batch"]
    tree = (min(s for s in sigmas if s > 0), sigmas[0]) if name in TREE else None
    step_seed: Callable[[int], int] | None = None
    if source == "GPU" or ERAS[2] <= options["era"] < ERAS[0]:
        step_seed = lambda seed: seed  # noqa: E731
    elif options["era"] >= ERAS[0]:
        step_seed = lambda seed: seed + 1  # noqa: E731
    step_source = source if tree is None else "GPU" if options["gpu_tree"] else "CPU"
    return Draws("CPU", card, batch=batch, step_seed=step_seed, step_source=step_source, tree=tree)


def texts(recipe: Recipe, sd: StableDiffusion) -> Texts:
    return comfyui_prompts.texts(sd, recipe.prompt, recipe.negative_prompt, recipe.clip_skip)


def needs_uncond(recipe: Recipe) -> Callable[[int, float], bool]:
    guided = not math.isclose(float(recipe.guidance), 1.0)
    return lambda call, sigma: guided


def size(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    if image is None:
        return recipe.width or sd.native_size, recipe.height or sd.native_size
    width, height = (side // 8 * 8 for side in image.size)
    return width, height


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture."""
    left, top = ((a - b) // 2 for a, b in zip(image.size, size, strict=True))
    return image.convert("RGB").crop((left, top, left + size[0], top + size[1]))


PROGRAM = Program(
    name="comfyui",
    title="ComfyUI",
    options=OPTIONS,
    samplers=NAMES,
    schedules=list(SCHEDULES),
    course=course,
    texts=texts,
    needs_uncond=needs_uncond,
    size=size,
    resized=resized,
)
