"""`minisd sweep PROMPT -I FILE -f 0.2,0.4,0.6,0.8 -s 10,20,50`: many settings, one contact sheet.

The folder of --to gets the pictures, one for each combination of strengths, step counts, samplers
and seeds; sheet.png, with labels; and distances.csv (minisd/sweeps/results.py). After an
interruption, the same command continues the sweep: a picture that is in the folder is not drawn
again.
"""

import argparse
from dataclasses import replace

from PIL import Image
from tqdm import tqdm

from minisd.cli import sheets
from minisd.cli.messages import memory_for
from minisd.cli.studio import Studio
from minisd.cli.switches import (
    add_model_switches,
    add_recipe_switches,
    recipes_from,
    refuse,
)
from minisd.figures.contact_sheet import sweep_sheet
from minisd.files import check_file, check_folder, open_folder, png_bytes, write_named
from minisd.recipes import Job
from minisd.sweeps.axes import caption
from minisd.sweeps.drawing import (
    check_files,
    check_names,
    claim,
    draw_missing,
    file_name,
    read_notes,
)
from minisd.sweeps.results import distances_csv, is_table

HELP = "draw many settings, and a contact sheet of them"
SHEET, TABLE = "sheet.png", "distances.csv"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    add_recipe_switches(parser, lists=True)
    add_model_switches(parser)
    add = parser.add_argument
    add("--to", default="outputs/sweep", metavar="FOLDER",
        help="folder for everything (outputs/sweep); an interrupted sweep continues")  # fmt: skip
    add("--batch", type=int, metavar="N",
        help="runs at the same time (16 of 64x64 pixels, fewer of larger ones)")  # fmt: skip
    add("--tile", type=int, default=96, metavar="PX",
        help="size of a picture on the sheet (96)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    for name in ("batch", "tile"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    folder = check_folder(args.to)
    notes = read_notes(folder)
    if "seed" not in args and notes:
        args.seed = [notes["seed"]]
    recipes = recipes_from(args)
    check_names(recipes)
    names = [file_name(recipe) for recipe in recipes]
    check_files(folder, [*names, SHEET, TABLE])
    inputs = [recipes[0].image, recipes[0].mask]
    check_file(folder / SHEET, SHEET, inputs)
    check_file(folder / TABLE, TABLE, inputs, is_table)
    studio = Studio(args)
    job = studio.prepare(recipes[0])
    open_folder(folder)
    claim(folder, job, studio.facts, [*names, SHEET, TABLE])
    width, height = job.recipe.width, job.recipe.height
    jobs = [replace(job, recipe=replace(r, width=width, height=height)) for r in recipes]

    def texts_of(drawn: Job) -> dict[str, str]:
        # It was drawn on the latent that all share; the record names the picture.
        record = studio.record(replace(drawn, image=job.image), drawn.recipe)
        return studio.texts(drawn.recipe, drawn.size) | record

    missing = sum(not (folder / name).exists() for name in names)
    if missing < len(names):
        print(f"{len(names) - missing} of {len(names)} pictures are already in {folder}")
    pictures = f"to draw pictures of {job.size[0]}x{job.size[1]} pixels at the same time"
    with (
        memory_for(pictures, "take a smaller --batch, or smaller pictures"),
        tqdm(total=missing, desc="sweep", unit="picture", disable=None, leave=False) as bar,
    ):
        for count in draw_missing(jobs, folder, texts_of, args.batch, refuse(args)):
            bar.update(count)
    images = [Image.open(folder / name).convert("RGB") for name in names]
    init_image = job.image if isinstance(job.image, Image.Image) else None
    data = distances_csv(recipes, images, init_image).encode()
    table = write_named(folder / TABLE, data, is_table)
    sheet = sweep_sheet(recipes, images, init_image, args.tile)
    texts = sheets.texts(caption(recipes), recipes, studio.facts)
    sheet_file = write_named(folder / SHEET, png_bytes(sheet, texts))
    print(f"{sheet_file} and {table.name}, of {len(names)} pictures")
    return 0
