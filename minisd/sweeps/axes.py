"""Many recipes from one: all combinations of the values of some fields."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any

from minisd.observe.plan import steps_after
from minisd.recipes.recipe import OWN, Recipe, name_of

AXES = ("strength", "steps", "sampler", "seed")  # those that most sweeps vary
# All fields of a recipe. In this order combinations nest, the first one outermost, and tables sort.
FIELDS = (
    *(item.name for item in fields(Recipe) if item.name not in (*AXES, "notes")),
    *AXES,
)
OPTION = "options."  # options.eta is the axis of the option eta


def combinations(base: Recipe, lists: Mapping[str, Sequence[Any]]) -> list[Recipe]:
    """The base with each combination of the lists' values; each once.

    lists: values by the name of the recipe's field, or of an option, as in `options.eta`. A field
    without a list has the base's value. Without an init image, the strength has no effect: only
    the first one is used. Raises ValueError for an unknown field and for a value out of range.
    """
    values = {axis: list(choices) for axis, choices in lists.items() if len(choices)}
    for axis in values:
        if axis not in FIELDS and not axis.startswith(OPTION):
            known = ", ".join((*FIELDS, "options.NAME"))
            raise ValueError(f"a recipe has no field {axis!r}; choose from {known}")
    if base.image is None and "image" not in values and "strength" in values:
        values["strength"] = values["strength"][:1]
    axes = sorted(values, key=lambda axis: FIELDS.index(axis.partition(".")[0]))
    recipes: dict[str, Recipe] = {}
    for combination in product(*(values[axis] for axis in axes)):
        chosen = dict(zip(axes, combination, strict=True))
        for axis in [axis for axis in axes if axis.startswith(OPTION)]:
            options = chosen.get("options", base.options)
            chosen["options"] = {**options, axis.removeprefix(OPTION): chosen.pop(axis)}
        recipe = replace(base, **chosen)
        recipes.setdefault(repr(recipe), recipe)
    return list(recipes.values())


def with_steps_run(recipes: Sequence[Recipe], run: int) -> list[Recipe]:
    """The recipes with the step counts that run `run` steps at their strengths; each once."""
    changed: dict[str, Recipe] = {}
    for recipe in recipes:
        steps = recipe.steps if recipe.image is None else steps_after(run, recipe.strength)
        running = replace(recipe, steps=steps)
        changed.setdefault(repr(running), running)
    return list(changed.values())


def differing(recipes: Sequence[Recipe]) -> list[str]:
    """The fields in which these recipes differ, those of AXES first."""
    order = (*AXES, *(name for name in FIELDS if name not in AXES))
    return [name for name in order if len({repr(getattr(each, name)) for each in recipes}) > 1]


def describe(recipe: Recipe, axes: Sequence[str]) -> str:
    """The recipe's values of these fields, in words."""
    words = {
        "strength": f"strength {recipe.strength:g}",
        "steps": f"{recipe.steps} steps",
        "sampler": name_of(recipe.sampler),
        "seed": f"seed {recipe.seed}",
        "prompt": f'"{recipe.prompt}"' if len(recipe.prompt) < 40 else f'"{recipe.prompt[:36]}..."',
    }
    others = {axis: getattr(recipe, axis) for axis in axes if axis not in words}
    words |= {
        axis: f"{axis.replace('_', ' ')} {value if isinstance(value, Mapping) else name_of(value)}"
        for axis, value in others.items()
    }
    return ", ".join(words[axis] for axis in axes)


def caption(recipes: Sequence[Recipe]) -> str:
    """The settings that all of these recipes share, in words."""
    first, differ = recipes[0], differing(recipes)
    shared = [axis for axis in AXES if axis not in differ]
    if first.image is None:
        shared = [axis for axis in shared if axis != "strength"]
    prompts = len({recipe.prompt for recipe in recipes})
    parts = [f'"{first.prompt}"' if prompts == 1 else f"{prompts} prompts"]
    parts.append(describe(first, shared))
    if first.schedule is not None and "schedule" not in differ:
        parts.append(f"{name_of(first.schedule)} schedule")
    if "guidance" not in differ:
        guidance = first.guidance
        parts.append(f"guidance {guidance if isinstance(guidance, int) else name_of(guidance)}")
    if "guidance_rule" not in differ:
        parts.append(first.guidance_rule or "")
    if "dialect" not in differ:
        parts.append(f"dialect {first.dialect}" if first.dialect != OWN else "")
    return ", ".join(filter(None, parts))


def file_word(value: Any) -> str:
    """A sampler's name as it can be part of a file's name: `my/rk3.py:rk3` gives my-rk3.py-rk3."""
    return re.sub(r"[^\w.-]+", "-", name_of(value)).strip("-.")
