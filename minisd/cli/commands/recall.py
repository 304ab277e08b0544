"""`minisd recall FILE ...`: print the command that draws a picture again."""

import argparse
import os
import re
import shlex
import warnings
from pathlib import Path

from minisd.cli.messages import in_words, visible
from minisd.recipes import read_recipe

HELP = "print the command that draws a picture again"


def configure(parser: argparse.ArgumentParser) -> None:
    text = "a picture with its settings in it"
    parser.add_argument("files", nargs="+", metavar="FILE", type=os.path.expanduser, help=text)


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
        print(" ".join(map(quoted, shlex.split(recipe.command()))))
    return status


def quoted(word: str) -> str:
    """A word as a shell reads it: in quotes where needed, and control characters as $'\\x1b'."""
    if visible(re.sub(r"[\n\t]", "", word)) == re.sub(r"[\n\t]", "", word):
        return shlex.quote(word)
    word = word.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{visible(word)}'"
