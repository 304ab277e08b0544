"""AUTOMATIC1111's stable-diffusion-webui, 1.10.1 (July 2024), and before 1.6 where rules changed.

Its k-samplers make a step more than strength says, and DDIM and PLMS one fewer. See
docs/dialects.md; source: modules/sd_samplers_*.py, sd_schedulers.py, rng.py, processing.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minisd.dialects import a1111_prompts, levels
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
from minisd.dialects.levels import ContinuousTime, Schedule, Table
from minisd.dialects.network import Texts
from minisd.dialects.noise import SOURCES
from minisd.dialects.solvers import uni_pc_corrected
from minisd.more_samplers.stochastic import dpmpp_2m_sde
from minisd.recipes.a1111_names import SAMPLERS as NAMES
from minisd.recipes.a1111_names import SECOND_ORDER, VP, automatic_schedule
from minisd.recipes.recipe import Recipe
from minisd.samplers import SAMPLERS, Sampler
from minisd.stable_diffusion import StableDiffusion

OPTIONS = noise_options("GPU", SOURCES) | {
    "exact_steps": Option(False, (False, True), "img2img runs as many steps as the slider says"),
    "ensd": Option(0, (-(2**31), 2**31), "added to the seed for the steps' noise"),
    "eta": Option(None, (0.0, 100.0), "of ancestral samplers (1) and of DDIM (0)"),
    "discard_next_to_last": Option(None, (False, True), "leave the next-to-last level out"),
    "quantize": Option(False, (False, True), "timesteps are rounded to whole numbers"),
    "downcast": Option(False, (False, True), "levels of before 1.7: abar in float16"),
    "old_karras": Option(False, (False, True), "karras from 0.1 to 10, as at first"),
    "sigma_min": Option(0.0, (0.0, 100.0), "lowest level of the schedule; 0: the model's"),
    "sigma_max": Option(0.0, (0.0, 100.0), "highest level of the schedule; 0: the model's"),
    "rho": Option(0.0, (0.0, 100.0), "of karras (7) and polyexponential (1); 0: these"),
    "sgm_noise": Option(False, (False, True), "txt2img starts at sqrt(1 + sigma^2)"),
    "noise_multiplier": Option(1.0, (0.0, 10.0), "img2img: a factor of the noise"),
    "extra_noise": Option(0.0, (0.0, 10.0), "img2img: more of the same noise"),
    "ngms": Option(0.0, (0.0, 100.0), "below this level every second call has no negative"),
    "ngms_all": Option(False, (False, True), "ngms counts for all calls"),
    "emphasis": Option("Original", ("Original", "No norm", "Ignore", "None"), "weights' rule"),
    "comma_backtrack": Option(20, (0, 74), "tokens that may move to the next chunk of 75"),
    "pad_conds": Option(False, (False, True), "the shorter prompt gets empty chunks"),
    "pad_conds_v0": Option(False, (False, True), "or its last state again, or is cut"),
    "old_editing": Option(False, (False, True), "[from:to:when] as before 1.6"),
    "solver": Option("midpoint", ("midpoint", "heun"), "of DPM++ 2M SDE; heun: its Heun"),
    "era": Option("1.10.1", ("1.10.1", "1.5"), "1.5: DDIM and PLMS as before August 2023"),
}
DISCARDING = ("k_dpm_2", "k_dpm_2_a", "dpmpp_3m_sde")
TREE = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")
SCHEDULES: dict[str, Schedule] = {
    "uniform": levels.uniform,
    "normal": levels.uniform,
    "model": levels.uniform,
    "karras": levels.karras,
    "exponential": levels.exponential,
    "polyexponential": levels.polyexponential,
    "sgm_uniform": levels.sgm_uniform,
    "simple": levels.simple,
    "ddim": levels.ddim_uniform,
    "ddim_uniform": levels.ddim_uniform,
    "kl_optimal": levels.kl_optimal_to_low,
    "kl_optimal_a1111": levels.kl_optimal_to_low,
    "align_your_steps": levels.align_your_steps,
    "beta": levels.beta_in_sigma,
    "beta_a1111": levels.beta_in_sigma,
}


def course(recipe: Recipe, has_image: bool) -> Course:
    options = settings_of(recipe, OPTIONS)
    samplers = dict.fromkeys([*NAMES.values(), "dpmpp_2m"])
    name = own_name("sampler", recipe.sampler, samplers, "AUTOMATIC1111's program")
    name = "k_dpmpp_2" if name == "dpmpp_2m" else name
    table = levels.table(downcast=options["downcast"])
    n, t_enc = step_counts(recipe, has_image, options)
    draws = Draws(options["noise_source"], options["card"])
    if options["ensd"]:
        draws = Draws(draws.source, draws.card, step_seed=lambda seed: seed + options["ensd"])
    notes = ["the encoder's noise is not known: its mean is used"] if has_image else []
    if name in VP:
        return vp_course(name, table, n, t_enc if has_image else None, options, draws, notes)

    schedule = recipe.schedule or automatic_schedule(name)
    own_name("schedule", schedule, SCHEDULES, "AUTOMATIC1111's program")
    full_list = list_of_levels(str(schedule), table, n, options, name in DISCARDING)
    sigmas = full_list[n - t_enc - 1 :] if has_image else full_list
    if name in TREE:
        low, high = min(s for s in full_list if s > 0), full_list[0]
        draws = Draws(draws.source, draws.card, tree=(low, high))
    start: dict[str, float] = {"inserted": sigmas[0]}
    if has_image:
        factor = options["noise_multiplier"]
        start["noise_gain"] = factor * (sigmas[0] + options["extra_noise"])
    elif options["sgm_noise"]:
        start["noise_gain"] = (1 + sigmas[0] ** 2) ** 0.5
    return Course(
        full_list, sigmas, sampler_with_eta(recipe, name, options["eta"]),
        table.nearest if options["quantize"] else table.t_of, draws, notes=notes, **start,
    )  # fmt: skip


def step_counts(recipe: Recipe, has_image: bool, options: dict[str, Any]) -> tuple[int, int]:
    """(levels' n, t_enc): img2img makes t_enc + 1 steps of n with k-samplers."""
    steps, strength = recipe.steps, min(recipe.strength, 0.999)
    if not has_image:
        return steps, steps - 1
    if not options["exact_steps"]:
        return steps, int(strength * steps)
    if strength == 0:
        raise ValueError("exact_steps at strength 0 has no steps: AUTOMATIC1111's program fails")
    return int(steps / strength), steps - 1


def list_of_levels(
    schedule: str, table: Table, n: int, options: dict[str, Any], discards: bool
) -> list[float]:
    """The levels of a schedule, with the options that change it."""
    discard = options["discard_next_to_last"]
    discard = discards if discard is None else discard or discards
    count = n + 1 if discard else n
    low = options["sigma_min"] or (0.1 if options["old_karras"] else table.low)
    high = options["sigma_max"] or (10.0 if options["old_karras"] else table.high)
    make = SCHEDULES[schedule]
    if schedule in ("karras", "polyexponential") and options["rho"]:
        make = partial(make, rho=options["rho"])
    if (low, high) != (table.low, table.high):
        ends = torch.tensor([low, high])
        if schedule not in ("karras", "exponential", "polyexponential"):
            raise ValueError(f"sigma_min and sigma_max are not spoken for the schedule {schedule}")
        table = Table(table.abar, ends, ends.log())
    full_list = make(table, count)
    return full_list[:-2] + full_list[-1:] if discard else full_list


def sampler_with_eta(recipe: Recipe, name: str, eta: float | None) -> Sampler:
    """minisd's sampler. Its Euler, Heun and DPM2 leave out the draws that the program wastes."""
    if name == "dpmpp_2m_sde":
        solver = recipe.options.get("solver", "midpoint")
        return partial(dpmpp_2m_sde, solver=solver, eta=1.0 if eta is None else eta)
    sampler = SAMPLERS[name]
    has_eta = name.endswith("_a") or name in TREE
    return partial(sampler, eta=eta) if has_eta and eta is not None else sampler


def vp_course(
    name: str,
    table: Table,
    n: int,
    t_enc: int | None,
    options: dict[str, Any],
    draws: Draws,
    notes: list[str],
) -> Course:
    """DDIM, PLMS and UniPC, on states of variance 1. t_enc is None in txt2img."""
    old = options["era"] == "1.5"
    if old and 999 % (1000 // n) == 0 and name != "uni_pc":
        n += 1  # adjust_steps_if_invalid: 1000 would be a timestep
    ts = [min(t, 999) for t in levels.leading(n)]
    sigma_of = table.sigmas.tolist()
    cut = ts if t_enc is None else ts[:t_enc]
    full_list = [sigma_of[t] for t in reversed(ts)]
    inserted = None if t_enc is None else sigma_of[ts[min(t_enc, len(ts) - 1)]]
    expected_t = {sigma_of[t]: float(t) for t in ts}
    sampler: Sampler = SAMPLERS[name]
    if name == "uni_pc":
        sampler = uni_pc_corrected
        start = 1.0 if t_enc is None else (cut[-1] + 1) / 1000 if cut else 0.0
        sigmas, expected_t = ContinuousTime(table).run(start, len(cut)) if cut else ([], expected_t)
    else:
        if name == "ddim":
            sampler = partial(sampler, eta=options["eta"] or 0.0)
        # The loop stops one short: it ends at the level of t = 1. Before 1.6 it went on to t = 0.
        sigmas = [sigma_of[t] for t in reversed(cut)] + ([sigma_of[0]] if old else [])
    if len(sigmas) < 2:  # no step: what was inserted is decoded
        sigmas = [inserted or sigma_of[ts[0]]]
    if inserted is None:
        start_values = unit_start(sigmas[0])
    else:
        extra = options["extra_noise"]
        start_values = scaled_start(inserted, sigmas[0], extra)
        start_values["noise_gain"] *= options["noise_multiplier"]
        if inserted != sigmas[0]:
            notes = [
                *notes,
                "the noise is added one level above the first call (as that program does)",
            ]
    if not old and name != "uni_pc":
        notes = [*notes, "the run stops at t = 1, so noise of sigma 0.041 stays in the picture"]
    return Course(
        full_list, sigmas, sampler, expected_t.__getitem__, draws, scaled_back=True, notes=notes,
        **start_values,
    )  # fmt: skip


# ---- texts ---------------------------------------------------------------------------------------


def texts(recipe: Recipe, sd: StableDiffusion) -> Texts:
    options = settings_of(recipe, OPTIONS)
    steps = recipe.steps * (2 if recipe.sampler in SECOND_ORDER.values() else 1)
    options["clip_skip"] = recipe.clip_skip
    return a1111_prompts.texts(sd, recipe.prompt, recipe.negative_prompt, steps, options)


def needs_uncond(recipe: Recipe) -> Callable[[int, float], bool]:
    """Always, even at guidance 1, but for "negative guidance minimum sigma" (NGMS)."""
    options = settings_of(recipe, OPTIONS)
    limit, all_calls = options["ngms"], options["ngms_all"]
    return lambda call, sigma: not (sigma < limit and (all_calls or call % 2 == 1))


# ---- pictures ------------------------------------------------------------------------------------


def size(recipe: Recipe, sd: StableDiffusion, image: Image.Image | None) -> tuple[int, int]:
    own = (sd.native_size, sd.native_size) if image is None else image.size
    return recipe.width or own[0], recipe.height or own[1]


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Without transparency, on white; then stretched to the size ("Just resize")."""
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "#ffffff")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB")
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def varied(noise: Tensor, towards: Tensor, weight: float) -> Tensor:
    """Between the noise of two seeds: along the great circle, for each column of each channel."""
    dim = -2  # the latent's height
    norms = (y / torch.linalg.vector_norm(y, dim=dim, keepdim=True) for y in (noise, towards))
    cosine = torch.mul(*norms).sum(dim, keepdim=True)
    if cosine.mean() > 0.9995:
        return noise * weight + towards * (1 - weight)  # in this order, there
    angle = torch.acos(cosine)
    share = torch.sin((1 - weight) * angle) * noise + torch.sin(weight * angle) * towards
    return share / torch.sin(angle)


PROGRAM = Program(
    name="a1111",
    title="AUTOMATIC1111's program",
    options=OPTIONS,
    samplers=NAMES,
    schedules=list(SCHEDULES),
    course=course,
    texts=texts,
    needs_uncond=needs_uncond,
    size=size,
    resized=resized,
    varied=varied,
)
