"""Many recipes from one: all combinations of some strengths, step counts, samplers and seeds."""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from minisd.observe.plan import steps_after
from minisd.recipes.recipe import OWN, Recipe, name_of

AXES = ("strength", "steps", "sampler", "seed")


def combinations(base: Recipe, lists: dict[str, list[Any]]) -> list[Recipe]:
    """The base with each combination of the lists' values, by the name of the axis; each once.

    Strengths are outermost, then steps, samplers, seeds. An axis without a list has the base's
    value. If there is no seed, one is drawn for all. Without an init image, the strength has no
    effect: only the first one is used. Raises ValueError for a value out of range.
    """
    values = [lists.get(axis) or [getattr(base, axis)] for axis in AXES]
    if base.image is None:
        values[0] = values[0][:1]
    if values[-1] == [None]:
        values[-1] = [random.SystemRandom().randrange(2**32 - 1)]
    recipes: list[Recipe] = []
    for combination in product(*values):
        recipe = replace(base, **dict(zip(AXES, combination, strict=True)))
        if recipe not in recipes:
            recipes.append(recipe)
    return recipes


def with_steps_run(recipes: Sequence[Recipe], run: int) -> list[Recipe]:
    """The recipes with the step counts that run `run` steps at their strengths; each once."""
    changed: list[Recipe] = []
    for recipe in recipes:
        steps = recipe.steps if recipe.image is None else steps_after(run, recipe.strength)
        if (running := replace(recipe, steps=steps)) not in changed:
            changed.append(running)
    return changed


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """The axes along which these recipes differ."""
    return [axis for axis in AXES if len({getattr(recipe, axis) for recipe in recipes}) > 1]


def describe(recipe: Recipe, axes: Sequence[str]) -> str:
    """The recipe's values on these axes, in words."""
    words = {
        "strength": f"strength {recipe.strength:g}",
        "steps": f"{recipe.steps} steps",
        "sampler": name_of(recipe.sampler),
        "seed": f"seed {recipe.seed}",
    }
    return ", ".join(words[axis] for axis in axes)


def caption(recipes: Sequence[Recipe]) -> str:
    """The settings that all of these recipes share, in words."""
    first, differ = recipes[0], differing(recipes)
    shared = [axis for axis in AXES if axis not in differ]
    if first.image is None:
        shared = [axis for axis in shared if axis != "strength"]
    parts = [f'"{first.prompt}"', describe(first, shared)]
    if first.schedule is not None:
        parts.append(f"{name_of(first.schedule)} schedule")
    guidance = first.guidance
    parts.append(f"guidance {guidance if isinstance(guidance, int) else name_of(guidance)}")
    parts.append(first.guidance_rule or "")
    parts.append(f"dialect {first.dialect}" if first.dialect != OWN else "")
    return ", ".join(filter(None, parts))


def file_word(value: Any) -> str:
    """A sampler's name as it can be part of a file's name: `my/rk3.py:rk3` gives my-rk3.py-rk3."""
    return re.sub(r"[^\w.-]+", "-", name_of(value)).strip("-.")
