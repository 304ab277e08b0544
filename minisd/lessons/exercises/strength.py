"""The exercises of lesson 4: strength."""

from collections.abc import Callable
from math import ceil
from typing import Any

from minisd.dialects import DIALECTS
from minisd.lessons.checks import Exercise, which
from minisd.recipes.recipe import Recipe
from minisd.schedule import start_index

FIRST_STEP = Exercise(
    start_index,
    [
        (
            "that is the number of steps that are run. Return how many are skipped",
            lambda steps, strength: int(round(steps * strength, 9)),
        ),
        (
            "50 * 0.58 is 28.999999999999996 for a computer: round the product to 9 decimals "
            "first. CompVis and diffusers do not, and run 28 steps",
            lambda steps, strength: steps - int(steps * strength),
        ),
        (
            "the number of steps is rounded to the nearest. It is rounded down",
            lambda steps, strength: steps - round(steps * strength),
        ),
        (
            "the number of steps is rounded up. It is rounded down",
            lambda steps, strength: steps - ceil(round(steps * strength, 9)),
        ),
        (
            "one step less is skipped than should be. AUTOMATIC1111 counts so",
            lambda steps, strength: max(0, start_index(steps, strength) - 1),
        ),
    ],
    "floor(steps * strength) steps are run, and the ones before them are skipped",
    [
        {"steps": steps, "strength": strength}
        for steps, strength in (
            (10, 0.7), (50, 0.58), (100, 0.29), (30, 0.7), (29, 0.7), (7, 0.5), (10, 0.0), (10, 1.0)
        )
    ],
)  # fmt: skip


def steps_run(program: str, steps: int, strength: float) -> int:
    """The dialects know: they draw as these programs do."""
    dialect = DIALECTS.get(program)
    if dialect is None:
        return steps - start_index(steps, strength)
    recipe = Recipe("", image="drawing.png", sampler="k_euler", steps=steps, strength=strength)
    return len(dialect.sigmas(recipe)) - 1


def counted(a1111: Callable[[int, float], int], comfyui: Callable[[int, float], int]) -> Any:
    """All three programs' rules, of which two can be wrong."""
    rules = {"a1111": a1111, "comfyui": comfyui}

    def run(program: str, steps: int, strength: float) -> int:
        return rules.get(program, lambda n, f: n - start_index(n, f))(steps, strength)

    return run


STEPS_RUN = Exercise(
    steps_run,
    [
        (
            "AUTOMATIC1111 runs one step more than floor(steps * strength)",
            counted(lambda n, f: int(f * n), lambda n, f: n),
        ),
        (
            "AUTOMATIC1111 cannot run more steps than there are: at strength 1 it runs all",
            counted(lambda n, f: int(f * n) + 1, lambda n, f: n),
        ),
        (
            "ComfyUI runs all the steps that you ask for, at any strength: it lengthens the "
            "schedule instead",
            counted(lambda n, f: min(int(f * n), n - 1) + 1, lambda n, f: int(f * n)),
        ),
        (
            "for ComfyUI that is the length of the whole schedule. How many of it are run?",
            counted(lambda n, f: min(int(f * n), n - 1) + 1, lambda n, f: int(n / f)),
        ),
        (
            "all three have the same rule here, but only minisd has it",
            lambda program, n, f: n - start_index(n, f),
        ),
    ],
    "so 10 steps at strength 0.7 are 7, 8 and 10 steps, in three programs",
    [
        {"program": program, "steps": steps, "strength": strength}
        for program in ("minisd", "a1111", "comfyui")
        for steps, strength in ((10, 0.7), (10, 0.4), (20, 0.33), (10, 1.0))
    ],
)  # fmt: skip

SHORT = Exercise(
    ("B", 20),
    [
        ("21 is the right count. B runs one step less than it should", ("B", 21)),
        ("29 is the count for strength 1, of a program that is one step short", ("B", 29)),
        ("program C has another sampler, but its steps are seven, as they should be", ("C", 20)),
    ],
    "B takes S levels where S steps need S + 1. The two pictures at the end of InvokeAI's guide "
    "were made so: it says 20 steps for 30, and 19 for 29",
    diagnose=which("B", "how many steps should 30 steps at strength 0.7 run, and how many less?"),
)

EXERCISES = {
    "first_step": FIRST_STEP,
    "steps_run": STEPS_RUN,
    "short": SHORT,
}
