"""Dialects: the picture that another program would have made of the same recipe.

One file a program says what it does; drawing.py draws it; docs/dialects.md shows the differences.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from minisd.dialects import a1111, comfyui, compvis, describe, diffusers, drawing, invokeai
from minisd.dialects.drawing import Program
from minisd.dialects.settings import from_settings
from minisd.recipes.recipe import Dialect, Job, Recipe
from minisd.run import Observer, Result
from minisd.stable_diffusion import StableDiffusion

PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        a1111.PROGRAM,
        comfyui.PROGRAM,
        diffusers.PROGRAM,
        compvis.PROGRAM,
        *invokeai.PROGRAMS.values(),
    )
}


def with_own_names(program: Program, recipe: Recipe) -> Recipe:
    """The recipe with minisd's names in place of the program's, such as Euler a."""
    samplers = {name.lower(): own for name, own in program.samplers.items()}
    sampler, schedule = recipe.sampler, recipe.schedule
    if isinstance(sampler, str):
        sampler = samplers.get(sampler.lower(), sampler)
    if isinstance(schedule, str):
        schedule = schedule.lower().replace(" ", "_")
    return replace(recipe, sampler=sampler, schedule=schedule)


def spoken(program: Program) -> Dialect:
    """The program as a recipe uses it."""
    own = partial(with_own_names, program)

    def sigmas(recipe: Recipe) -> list[float]:
        return program.course(own(recipe), recipe.image is not None).sigmas

    def draw(job: Job, observe: Observer | None) -> Result:
        return drawing.draw(replace(job, recipe=own(job.recipe)), program, observe)

    def prepare(recipe: Recipe, sd: StableDiffusion, image: Any, mask: Any) -> Job:
        return drawing.prepare(program, own(recipe), sd, image, mask)

    return Dialect(
        own_names=own,
        check=lambda recipe: drawing.check(program, own(recipe)),
        prepare=prepare,
        draw=draw,
        sigmas=sigmas,
        summary=lambda recipe: describe.summary(program, own(recipe)),
        describe=lambda recipe: describe.describe(program, own(recipe)),
        next_seed=program.next_seed,
    )


DIALECTS = {name: spoken(program) for name, program in PROGRAMS.items()}

__all__ = ["DIALECTS", "PROGRAMS", "from_settings"]
