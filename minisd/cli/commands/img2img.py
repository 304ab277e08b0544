"""`minisd img2img PROMPT -I FILE`: draw on top of a picture."""

import argparse
import os
import warnings
from pathlib import Path

from minisd.cli.studio import Studio
from minisd.cli.switches import (
    Request,
    add_folder_switch,
    add_model_switches,
    add_recipe_switches,
    add_series_switches,
    request_from,
)
from minisd.recipes import read_recipe

HELP = "draw on top of a picture"


def configure(parser: argparse.ArgumentParser, image: bool = True) -> None:
    parser.add_argument("prompt", nargs="?", help="what to draw; [words in brackets] are avoided")
    add_recipe_switches(parser, image)
    add_series_switches(parser, image)
    add_folder_switch(parser)
    add_model_switches(parser)
    parser.add_argument(
        "--from",
        dest="from_picture",
        metavar="FILE",
        type=os.path.expanduser,
        help="take the settings from a picture that minisd, InvokeAI or AUTOMATIC1111 made; typed "
        "switches override them",
    )


def run(args: argparse.Namespace) -> int:
    request = typed_request(args)
    if not request.recipe.image:
        raise ValueError("img2img needs a picture to draw on: -I FILE (or use minisd txt2img)")
    Studio(args).make(request)
    return 0


def typed_request(args: argparse.Namespace) -> Request:
    """The request of a command line: what was typed, over the settings of --from."""
    base = Request()
    if args.from_picture:
        recipe = read_recipe(Path(args.from_picture))
        for note in recipe.notes:
            warnings.warn(note, stacklevel=2)
        base = Request(recipe, typed=frozenset({"prompt"}))
    return request_from(vars(args), base)
