"""`minisd recall FILE ...`: print the command that draws a picture again."""

import argparse
import warnings
from pathlib import Path

from minisd.cli.messages import in_words
from minisd.recipes import read_recipe

HELP = "print the command that draws a picture again"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="a picture with its settings in it"
    )


def run(args: argparse.Namespace) -> int:
    status = 0
    for file in args.files:
        try:
            recipe = read_recipe(Path(file))
        except (ValueError, OSError) as error:
            status = 1
            warnings.warn(in_words(error), stacklevel=1)
            continue
        for note in recipe.notes:
            warnings.warn(f"{file}: {note}", stacklevel=1)
        print(recipe.command())
    return status
