"""Dialects: the picture that another program would have made of the same recipe.

One file a program says what it does; drawing.py draws it; docs/dialects.md shows the differences.
"""

from functools import partial

from minisd.dialects import a1111, comfyui, compvis, describe, diffusers, drawing, invokeai
from minisd.dialects.drawing import Program
from minisd.dialects.settings import from_settings
from minisd.recipes.recipe import Dialect, Job, Recipe
from minisd.run import Observer, Result

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


def spoken(program: Program) -> Dialect:
    """The program as a recipe uses it."""

    def draw(job: Job, observe: Observer | None) -> Result:
        return drawing.draw(job, program, observe)

    def sigmas(recipe: Recipe) -> list[float]:
        return program.course(recipe, recipe.image is not None).sigmas

    return Dialect(
        check=partial(drawing.check, program),
        prepare=partial(drawing.prepare, program),
        draw=draw,
        sigmas=sigmas,
        summary=partial(describe.summary, program),
        describe=partial(describe.describe, program),
        next_seed=program.next_seed,
    )


DIALECTS = {name: spoken(program) for name, program in PROGRAMS.items()}

__all__ = ["DIALECTS", "PROGRAMS", "from_settings"]
