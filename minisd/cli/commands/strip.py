"""`minisd strip PROMPT -I FILE -f 0.7,0.4`: a sheet of what happens at each step.

One run for each strength, step count, sampler and seed. The sheet shows the network's first input,
the steps asked and run, the latent at each step, and the result (minisd/figures/strips.py).
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from minisd.cli.files import next_prefix, open_folder, save_png
from minisd.cli.studio import Studio
from minisd.cli.switches import (
    Request,
    add_folder_switch,
    add_model_switches,
    add_recipe_switches,
    recipes_from,
)
from minisd.figures.sheet import PALE, column, text_image
from minisd.figures.strips import ROWS, strip_sheet
from minisd.observe.trace import Trace
from minisd.observe.trace_file import save_trace
from minisd.recipes import Recipe
from minisd.recipes.recipe import name_of
from minisd.sweeps.axes import caption, describe, differing, file_word
from minisd.sweeps.drawing import check_names

HELP = "draw a sheet of what happens at each step"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    add_recipe_switches(parser, lists=True)
    add_folder_switch(parser)
    add_model_switches(parser)
    add_sheet_switches(parser, rows="x", choices=list(ROWS))
    parser.add_argument(
        "--traces", metavar="FOLDER", help="also write the recorded runs there, for minisd diff"
    )


def add_sheet_switches(parser: argparse.ArgumentParser, rows: str, choices: list[str]) -> None:
    text = f"the rows of tiles, with commas between: {', '.join(choices)} ({rows})"
    parser.add_argument("--rows", default=rows, metavar="ROW,...", help=text)
    parser.add_argument("--tile", type=int, default=48, metavar="PX", help="size of a tile (48)")
    parser.add_argument(
        "--to", metavar="FILE", help="write the sheet to this file (default: a new file in -o)"
    )


def run(args: argparse.Namespace) -> int:
    rows = check_sheet_switches(args, list(ROWS))
    recipes = recipes_from(args)
    check_names(recipes)
    traces_folder = open_folder(args.traces) if args.traces else None
    studio = Studio(args)
    job = studio.prepare(recipes[0])
    traces = []
    for i, recipe in enumerate(recipes, 1):
        with Trace(studio.sd, settings_of(recipe)) as trace:
            label = f"{i}/{len(recipes)}"
            studio.draw(replace(job, recipe=recipe), trace, label=label, refuse=refuse(args))
        traces.append(trace)
        if traces_folder:
            print(save_trace(trace, traces_folder / trace_name(recipe)))
    axes = differing(recipes) or ["strength" if recipes[0].image else "steps"]
    titles = [describe(recipe, axes) for recipe in recipes]
    strips = strip_sheet(traces, titles, rows, args.tile, studio.sd)
    sheet = column([text_image(caption(recipes), 12, PALE), strips], gap=0, margin=10)
    print(save_sheet(sheet, args, f"{recipes[0].seed}.strip.png"))
    return 0


def refuse(args: argparse.Namespace) -> bool:
    return not getattr(args, "wrong_anyway", False)


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


# ---- shared with diff ----------------------------------------------------------------------------


def check_sheet_switches(args: argparse.Namespace, choices: list[str]) -> list[str]:
    """The rows of --rows. Raises ValueError or OSError, before any work is done."""
    rows = args.rows.split(",")
    for name in rows:
        if name not in choices:
            raise ValueError(f"--rows {name}: choose from {', '.join(choices)}")
    if args.tile < 1:
        raise ValueError(f"--tile must be 1 or more, not {args.tile}")
    if args.to and Path(args.to).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"--to {args.to}: name a picture, such as sheet.png")
    if args.to:
        open_folder(Path(args.to).parent)
    return rows


def save_sheet(sheet: Image.Image, args: argparse.Namespace, ending: str) -> Path:
    """Write it to the file of --to, or to a new file in -o."""
    if args.to:
        sheet.save(args.to, optimize=True)
        return Path(args.to)
    folder = open_folder(getattr(args, "outdir", Request.outdir))
    return save_png(sheet, folder, f"{next_prefix(folder):06}.{ending}", {})
