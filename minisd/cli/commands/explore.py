"""`minisd explore PROMPT -I FILE`: the explorer page of an init image."""

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from minisd.cli import switches
from minisd.cli.studio import Studio, memory_to_draw
from minisd.explorer.page import STRENGTHS, explore_command, make_page
from minisd.explorer.runs import draw_all, prompt_texts
from minisd.files import beside, check_file, check_folder, open_folder, write_first, write_named
from minisd.images import is_transparent, open_image
from minisd.recipes import DIALECTS, Recipe, prepare
from minisd.recipes.dream import BY_FIELD, between, option_value
from minisd.run import Event
from minisd.samplers import Step
from minisd.schedule import start_index

HELP = "make a page that shows an init image at every strength, step by step"
PAGE = "explorer.html"


def configure(parser: argparse.ArgumentParser) -> None:
    side, strengths = between(1, 16384, int), switches.value_type(strength_list)
    add, add_more = parser.add_argument, switches.add_more
    add("prompt", help="what to draw; [words in brackets] are avoided")
    text = "the init image; it is scaled to fit inside width x height"
    add_more(parser, "-I --init_img --init-img", "image", text, str, "FILE")
    text = "the positions of the Strength slider, 0..1 each (0,0.1,...,1)"
    add("-f", "--strengths", metavar="X,X,...", type=strengths, default=STRENGTHS, help=text)
    text = "steps of the whole schedule, 1..200 (20)"
    add_more(parser, "-s --steps --ddim_steps", "steps", text, between(1, 200, int), "N")
    text = "seed of the random numbers (a new one)"
    add_more(parser, "-S --seed", "seed", text, between(0, 2**32 - 1, int), "N")
    add_more(parser, "-W --width --W", "width", "width (the model's native size)", side, "PX")
    add_more(parser, "-H --height --H", "height", "height (the model's native size)", side, "PX")
    for field in ("guidance", "guidance_rule", "sampler", "schedule", "dialect", "negative_prompt"):
        (metavar, text), switch = switches.HELP[field], BY_FIELD[field]
        add_more(parser, " ".join(switch.names), field, text, switch.convert, metavar)
    metavar, text = switches.HELP["options"]
    option = switches.value_type(option_value)
    add("--set", dest="options", metavar=metavar, type=option, action="append", help=text,
        default=argparse.SUPPRESS)  # fmt: skip
    text = f"the page ({PAGE}, then explorer-2.html, ...)"
    add("-o", "--output", metavar="FILE.html", help=text)
    switches.add_model_switches(
        parser,
        torch_only="the explorer needs the network's layers, and openvino runs it as a whole",
    )


def strength_list(text: str) -> list[float]:
    """`0.8,0.3,0.30` -> [0.3, 0.8]. Raises ValueError."""
    return sorted({between(0, 1)(part) for part in text.split(",")})


def run(args: argparse.Namespace) -> int:
    # Mistakes are reported before the model is loaded.
    recipe = switches.recipe_from(args, Recipe("", steps=20, fit=True))
    if recipe.image is None:
        raise ValueError("explore needs a picture to draw on: -I FILE")
    check_folder(".")
    path = None if args.output is None else check_file(args.output, PAGE, [recipe.image])
    recipe.functions()
    dialect = DIALECTS[recipe.dialect]
    if dialect is None:
        prompt_texts(recipe.prompt)
    picture = open_image(recipe.image)
    if is_transparent(picture):
        note = f"the transparency of {recipe.image} is ignored: all of it is redrawn"
        warnings.warn(note, stacklevel=2)
    job = prepare(recipe, Studio(args).sd, picture.convert("RGB"))
    if path is not None:
        open_folder(path.parent)
    recipe = replace(recipe, seed=job.recipe.seed)

    steps = recipe.steps
    total = sum(steps - start_index(steps, strength) for strength in args.strengths)
    if dialect is not None:
        runs = [replace(recipe, strength=strength) for strength in args.strengths]
        total = sum(len(dialect.sigmas(run)) - 1 for run in runs)
    with (
        memory_to_draw(job),
        tqdm(total=total, desc=f"seed {recipe.seed}", disable=None, leave=False) as bar,
    ):

        def observe(event: Event) -> None:
            if isinstance(event, Step):
                bar.update()

        command = explore_command(recipe, args.strengths, args.model, args.dtype)
        page = make_page(job, draw_all(job, args.strengths, observe), command)
    data = page.encode("utf-8", "replace")
    path = write_first(beside(Path(PAGE)), data) if path is None else write_named(path, data)
    print(f"{path}: {len(args.strengths)} strengths, {total} steps, {len(page) / 1e6:.2f} MB")
    return 0
