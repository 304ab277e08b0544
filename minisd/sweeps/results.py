"""What a sweep measures: how far its pictures are apart."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from minisd.observe.plan import plan
from minisd.recipes.recipe import DIALECTS, Recipe, name_of
from minisd.sweeps.axes import AXES
from minisd.sweeps.drawing import file_name

COLUMNS = ["file", *AXES, "steps_run", "sigma", "to_init", *(f"to_previous_{a}" for a in AXES)]


def distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square of the difference over pixels and channels, in levels of 255."""
    pixels_a, pixels_b = (np.asarray(image.convert("RGB"), dtype=float) for image in (a, b))
    return float(((pixels_a - pixels_b) ** 2).mean() ** 0.5)


def distances_csv(
    recipes: Sequence[Recipe], images: Sequence[Image.Image], init_image: Image.Image | None
) -> str:
    """A line for each picture: its settings, and its distance to the init image and to neighbours.

    The neighbour on an axis is the picture that has the value before on this axis, all else equal.
    """

    def values(recipe: Recipe) -> tuple:
        return tuple(getattr(recipe, axis) for axis in AXES)

    image_of = {values(recipe): image for recipe, image in zip(recipes, images, strict=True)}
    in_order = [list(dict.fromkeys(column)) for column in zip(*image_of, strict=True)]
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for recipe, image in zip(recipes, images, strict=True):
        strength = 1 if recipe.image is None else recipe.strength
        if dialect := DIALECTS[recipe.dialect]:
            sigmas = dialect.sigmas(recipe)
        else:
            run = plan(recipe.steps, strength, recipe.sampler, recipe.schedule)
            sigmas = run.sigmas[run.steps_skipped :] if run.steps_run else [0.0]
        line = [file_name(recipe), recipe.strength, recipe.steps, name_of(recipe.sampler)]
        line += [recipe.seed, len(sigmas) - 1, f"{sigmas[0]:.6g}"]
        line.append("" if init_image is None else f"{distance(image, init_image):.3f}")
        for k, value in enumerate(values(recipe)):
            i = in_order[k].index(value)
            before = (*values(recipe)[:k], in_order[k][i - 1], *values(recipe)[k + 1 :])
            neighbour = image_of.get(before) if i else None
            line.append("" if neighbour is None else f"{distance(image, neighbour):.3f}")
        table.writerow(line)
    return text.getvalue()


def is_table(path: Path) -> bool:
    """Whether the file is a table of distances, with the columns as minisd writes them."""
    with open(path, "rb") as file:
        return file.readline(1000).rstrip() == ",".join(COLUMNS).encode()
