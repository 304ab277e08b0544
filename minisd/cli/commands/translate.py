"""`minisd translate PICTURE --to a1111`: settings for another program, and what it cannot do."""

import argparse
import os
import warnings
from pathlib import Path

from minisd.cli.messages import visible
from minisd.dialects import PROGRAMS
from minisd.dialects.translate import TARGETS, translate
from minisd.recipes import read_recipe

HELP = "print a picture's settings for another program"


def configure(parser: argparse.ArgumentParser) -> None:
    text = "a picture with its settings in it"
    parser.add_argument("file", metavar="PICTURE", type=os.path.expanduser, help=text)
    text = f"the program: {', '.join(TARGETS)}"
    parser.add_argument("--to", required=True, metavar="PROGRAM", choices=list(TARGETS), help=text)


def run(args: argparse.Namespace) -> int:
    recipe = read_recipe(Path(args.file))
    for note in recipe.notes:
        warnings.warn(note, stacklevel=1)
    translation = translate(recipe, args.to, PROGRAMS)
    print(visible_lines(translation.text))
    for note in translation.notes:
        warnings.warn(f"{args.to}: {note}", stacklevel=1)
    return 0


def visible_lines(text: str) -> str:
    """The text without control characters other than the ends of lines."""
    return "\n".join(visible(line) for line in text.split("\n"))
