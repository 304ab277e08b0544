"""The same drawing in every dialect: the table and the picture of docs/dialects.md.

    python -m bench.dialects [--to docs/pictures/dialects.png]

10 steps at strength 0.7, with the weights in the box; the noise is the CPU's wherever a program can
have it. Each column is one program's run.
"""

import argparse
import warnings
from pathlib import Path

from PIL import Image

import minisd
from minisd.dialects import PROGRAMS
from minisd.figures.sheet import column, padded, row, text_image
from minisd.observe.plan import count_calls
from minisd.recipes.recipe import Recipe

PROMPT, SKETCH = "fire, noto", "docs/pictures/fire-sketch.png"
BASE = {"steps": 10, "strength": 0.7, "guidance": 4, "seed": 2}
# (the label, fields of the recipe)
RUNS: tuple[tuple[str, dict], ...] = (
    ("minisd\nk_euler", {"sampler": "k_euler"}),
    ("minisd\nddim", {"sampler": "ddim"}),
    ("a1111\nEuler", {"dialect": "a1111", "sampler": "k_euler"}),
    ("a1111\nDPM++ 2M (Karras)", {"dialect": "a1111", "sampler": "k_dpmpp_2"}),
    ("a1111\nDDIM", {"dialect": "a1111", "sampler": "ddim"}),
    ("a1111\nEuler, exact", {"dialect": "a1111", "sampler": "k_euler", "exact": True}),
    ("comfyui\neuler, normal", {"dialect": "comfyui", "sampler": "k_euler", "schedule": "normal"}),
    ("comfyui\ndpmpp_2m, karras",
     {"dialect": "comfyui", "sampler": "k_dpmpp_2", "schedule": "karras"}),
    ("diffusers\nDDIM", {"dialect": "diffusers", "sampler": "ddim"}),
    ("diffusers\nPNDM", {"dialect": "diffusers", "sampler": "plms"}),
    ("diffusers\nLMS", {"dialect": "diffusers", "sampler": "k_lms"}),
    ("compvis\nddim", {"dialect": "compvis", "sampler": "ddim"}),
    ("invokeai-2.0\nk_euler", {"dialect": "invokeai-2.0", "sampler": "k_euler"}),
    ("invokeai-2.0\nddim", {"dialect": "invokeai-2.0", "sampler": "ddim"}),
    ("invokeai-2.2\nddim", {"dialect": "invokeai-2.2", "sampler": "ddim"}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, help="write the picture here")
    args = parser.parse_args()
    sd = minisd.load()
    drawing = Image.open(SKETCH).convert("RGB").resize((64, 64))
    tiles = []
    print(
        "| dialect | sampler | the noise is added at | first call | calls | x at the first call |"
    )
    print("|---|---|---|---|---|---|")
    for label, fields in RUNS:
        recipe = recipe_of(fields)
        print(table_row(label, recipe))
        if args.to:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture = recipe.draw(sd, drawing).image
            tile = column([text_image(label, 11), picture.resize((128, 128))], gap=2)
            tiles.append(padded(tile, 140))
    if args.to:
        rows = [row(tiles[i : i + 5], gap=6) for i in range(0, len(tiles), 5)]
        column(rows, gap=10, margin=8).save(args.to)
        print(args.to)


def recipe_of(fields: dict) -> Recipe:
    fields = dict(fields)
    options = {"exact_steps": True} if fields.pop("exact", False) else {}
    if fields.get("dialect"):
        options["noise_source"] = "CPU"
    return Recipe(PROMPT, image="sketch.png", options=options, **BASE, **fields)


def table_row(label: str, recipe: Recipe) -> str:
    name, sampler = label.split("\n")
    if recipe.dialect == "minisd":
        schedule = "ddim" if recipe.sampler == "ddim" else "model"
        sigmas = minisd.SCHEDULES[schedule](10)[minisd.start_index(10, 0.7) :]
        sampler_function, inserted, gains = minisd.SAMPLERS[recipe.sampler], sigmas[0], (1.0, None)
    else:
        course = PROGRAMS[recipe.dialect].course(recipe, True)
        sigmas, sampler_function = course.sigmas, course.sampler
        inserted, gains = course.inserted, (course.image_gain, course.gain)
    calls = count_calls(sampler_function, sigmas)
    x = "x0 + sigma noise"
    if gains[1] is not None and (abs(gains[0] - 1) > 1e-6 or abs(gains[1] / sigmas[0] - 1) > 1e-6):
        x = f"{gains[0]:.4f} x0 + {gains[1]:.4f} noise"
    cells = [f"`{name}`", sampler, f"{inserted:.3f}", f"{sigmas[0]:.3f}", f"{calls}", x]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
