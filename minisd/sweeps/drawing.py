"""Drawing several recipes at the same time, and how they are put into batches."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minisd.observe.finite import stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.plan import plan
from minisd.observe.watch import together
from minisd.recipes.recipe import DIALECTS, Job, Recipe
from minisd.run import Result, encode
from minisd.sweeps.axes import file_word
from minisd.sweeps.lockstep import lockstep

BATCH = 16  # pictures of 64x64 pixels; fewer of larger ones


def file_name(recipe: Recipe) -> str:
    strength = "" if recipe.image is None else f"f{recipe.strength:.12g}-"
    return f"{strength}s{recipe.steps}-{file_word(recipe.sampler)[:60]}-S{recipe.seed}.png"


def encoded_image(job: Job) -> Image.Image | Tensor | None:
    """The job's init image as a latent; inpainting needs the picture itself."""
    if job.image is None or job.inpaints or DIALECTS[job.recipe.dialect]:
        return job.image  # a dialect may use draws of the seed to encode
    with torch.inference_mode():
        return encode(job.sd, job.image)


def check_names(recipes: Sequence[Recipe]) -> None:
    """Raises ValueError or OSError for a name or an option that is not there."""
    checked = set()
    for recipe in recipes:
        names = (recipe.sampler, recipe.schedule, recipe.guidance, recipe.guidance_rule)
        kind = repr((names, recipe.dialect, recipe.options, bool(recipe.image)))
        if kind not in checked or recipe.dialect != "minisd":
            recipe.functions()
        checked.add(kind)


# ---- which recipes are drawn together ------------------------------------------------------------


def levels_of_run(recipe: Recipe) -> tuple[list[float], int]:
    """The levels of the run, and its calls of the network (for dialects: its steps)."""
    if dialect := DIALECTS[recipe.dialect]:
        sigmas = dialect.sigmas(recipe)
        return sigmas, len(sigmas) - 1
    strength = 1.0 if recipe.image is None else recipe.strength
    return planned(recipe.steps, strength, recipe.sampler, recipe.schedule)


@cache
def planned(steps: int, strength: float, sampler: Any, schedule: Any) -> tuple[list[float], int]:
    run = plan(steps, strength, sampler, None if schedule == "file" else schedule)
    return run.sigmas[run.steps_skipped :] if run.steps_run else [0.0], run.calls


def batches(recipes: Sequence[Recipe], size: int) -> Iterator[list[int]]:
    """The recipes' numbers in batches of up to `size`, the longest runs first.

    The recipes of a batch have one size, so that the network can evaluate their calls together.
    Those that differ in the seed alone follow each other.
    """

    def place(i: int) -> tuple:
        recipe = recipes[i]
        return (-levels_of_run(recipe)[1], repr(replace(recipe, seed=None)), i)

    groups: dict[str, list[int]] = {}
    for i, recipe in enumerate(recipes):
        shape = (recipe.image, recipe.mask, recipe.width, recipe.height, recipe.fit)
        kind = repr((*shape, recipe.dialect, recipe.schedule == "file"))
        groups.setdefault(kind, []).append(i)
    parts = []
    for group in groups.values():
        order = sorted(group, key=place)
        parts += [order[i : i + size] for i in range(0, len(order), size)]
    yield from sorted(parts, key=lambda part: place(part[0])[0])


# ---- drawing -------------------------------------------------------------------------------------


def draw_together(jobs: Sequence[Job], refuse: bool = True) -> list[Result]:
    """The jobs' results. They share one model, whose calls are evaluated in batches."""
    return [result for result, _ in draw_measured(jobs, refuse)]


def draw_measured(jobs: Sequence[Job], refuse: bool = True) -> list[tuple[Result, int]]:
    """The jobs' results, one picture each, and how often each run called the network.

    Jobs that differ in the seed alone are one run of img2img with a list of seeds.
    """
    runs: dict[str, list[int]] = {}
    for i, job in enumerate(jobs):
        alone = DIALECTS[job.recipe.dialect] is not None or not isinstance(job.recipe.seed, int)
        rest = repr(replace(job.recipe, seed=i if alone else None))
        runs.setdefault(f"{rest} {id(job.image)} {id(job.context)}", []).append(i)

    def run_of(numbers: list[int]) -> Callable[[nn.Module], tuple[Result, int]]:
        job = jobs[numbers[0]]
        if len(numbers) > 1:
            seeds = [jobs[i].recipe.seed for i in numbers]
            job = replace(job, recipe=replace(job.recipe, seed=seeds))

        def run(network: Any) -> tuple[Result, int]:
            sd = copy.copy(job.sd)
            sd.unet = network
            spoken = DIALECTS[job.recipe.dialect] is not None
            with Ledger(sd, refuse, spoken) as ledger:
                result = replace(job, sd=sd).draw(together(stop_at_nan(job.sd), ledger))
            return result, ledger.calls

        return run

    unet, functions = jobs[0].sd.unet, [run_of(numbers) for numbers in runs.values()]
    results = [functions[0](unet)] if len(runs) == 1 else lockstep(unet, functions)
    parts: dict[int, tuple[Result, int]] = {}
    for numbers, (result, calls) in zip(runs.values(), results, strict=True):
        for k, i in enumerate(numbers):
            image, latent, seed = result.images[k], result.latent[k : k + 1], result.seeds[k]
            parts[i] = Result([image], latent, [seed]), calls
    return [parts[i] for i in range(len(jobs))]
