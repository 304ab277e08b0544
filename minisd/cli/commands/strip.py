"""`minisd strip PROMPT -I FILE -f 0.7,0.4`: a sheet of what happens at each step.

One run for each strength, step count, sampler and seed. The sheet shows the network's first input,
the steps asked and run, the latent at each step, and the result (minisd/figures/strips.py).
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minisd.cli import sheets
from minisd.cli.studio import Studio
from minisd.cli.switches import (
    add_folder_switch,
    add_model_switches,
    add_recipe_switches,
    recipes_from,
    refuse,
)
from minisd.exact_mode import is_exact
from minisd.figures.sheet import PALE, column, text_image
from minisd.figures.strips import ROWS, strip_sheet
from minisd.files import check_file, check_folder, open_folder
from minisd.observe.trace import Trace
from minisd.observe.trace_file import is_trace, save_trace
from minisd.proof.record import environment
from minisd.recipes import Recipe
from minisd.recipes.dream import dream_line
from minisd.recipes.recipe import name_of
from minisd.sweeps.axes import caption, describe, differing, file_word
from minisd.sweeps.drawing import check_names

HELP = "draw a sheet of what happens at each step"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    add_recipe_switches(parser, lists=True)
    add_folder_switch(parser)
    add_model_switches(parser)
    sheets.add_switches(parser, rows="x", choices=list(ROWS))
    parser.add_argument(
        "--traces", metavar="FOLDER", help="also write the recorded runs there, for minisd diff"
    )


def run(args: argparse.Namespace) -> int:
    recipes = recipes_from(args)
    rows = sheets.check_switches(args, list(ROWS), [recipes[0].image, recipes[0].mask])
    check_names(recipes)
    traces_folder = check_traces(args.traces, recipes) if args.traces else None
    studio = Studio(args)
    job = studio.prepare(recipes[0])
    open_folder(sheets.folder_of(args))
    if traces_folder:
        open_folder(traces_folder)
    traces = []
    for i, recipe in enumerate(recipes, 1):
        settings = settings_of(recipe) | {"line": dream_line(recipe), "exact": is_exact()}
        settings["environment"] = environment(studio.sd.device, studio.dtype)
        with Trace(studio.sd, settings) as trace:
            label = f"{i}/{len(recipes)}"
            studio.draw(replace(job, recipe=recipe), trace, label=label, refuse=refuse(args))
        traces.append(trace)
        if traces_folder:
            print(save_trace(trace, traces_folder / trace_name(recipe)))
    axes = differing(recipes) or ["strength" if recipes[0].image else "steps"]
    titles = [describe(recipe, axes) for recipe in recipes]
    strips = strip_sheet(traces, titles, rows, args.tile, studio.sd)
    sheet = column([text_image(caption(recipes), 12, PALE), strips], gap=0, margin=10)
    texts = sheets.texts(caption(recipes), recipes, studio.facts)
    if len(recipes) == 1:
        texts |= studio.texts(job.recipe, job.size) | studio.record(job, job.recipe)
    print(sheets.save(sheet, args, f"{recipes[0].seed}.strip.png", texts))
    return 0


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What a trace keeps of a recipe."""
    names = ("prompt", "image", "strength", "steps", "sampler", "seed", "schedule", "guidance")
    values = {name: getattr(recipe, name) for name in names}
    plain = {name: v if isinstance(v, int | float) else name_of(v) for name, v in values.items()}
    return {name: plain[name] for name, value in values.items() if value is not None}


def trace_name(recipe: Recipe) -> str:
    strength = "" if recipe.image is None else f"-f{recipe.strength:.12g}"
    word = file_word(recipe.sampler)
    return f"s{recipe.steps}{strength}-{word}-S{recipe.seed}.safetensors"


def check_traces(folder: str, recipes: Sequence[Recipe]) -> Path:
    """The folder of --traces. Raises ValueError or OSError if a trace cannot be written there."""
    names = [trace_name(recipe) for recipe in recipes]
    if len(set(names)) < len(names):
        raise ValueError("two runs have the same file name: rename one sampler")
    for name in names:
        check_file(check_folder(folder) / name, name, replaceable=is_trace)
    return check_folder(folder)
