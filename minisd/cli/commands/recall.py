"""`minisd recall FILE ...`: print the command that draws a picture again."""

import argparse
import os
import re
import shlex
import warnings
from pathlib import Path

from minisd.cli.messages import in_words, visible
from minisd.recipes import read_recipe
from minisd.recipes.metadata import read_model

HELP = "print the command that draws a picture again"


def configure(parser: argparse.ArgumentParser) -> None:
    text = "a picture with its settings in it"
    parser.add_argument("files", nargs="+", metavar="FILE", type=os.path.expanduser, help=text)


def run(args: argparse.Namespace) -> int:
    status = 0
    for file in args.files:
        try:
            recipe, model = read_recipe(Path(file)), read_model(file)
        except (ValueError, OSError) as error:
            status = 1
            warnings.warn(in_words(error), stacklevel=1)
            continue
        for note in recipe.notes:
            warnings.warn(f"{file}: {note}", stacklevel=1)
        words = shlex.split(recipe.command())
        end = -2 if recipe.full_prompt.startswith("-") else len(words)  # the prompt follows `--`
        words[end:end] = model.switches()
        print(" ".join(map(quoted, words)))
    return status


def quoted(word: str) -> str:
    """A word as a shell reads it: in quotes where needed, and control characters as $'\\x1b'."""
    if visible(re.sub(r"[\n\t]", "", word)) == re.sub(r"[\n\t]", "", word):
        return shlex.quote(word)
    word = word.replace("\\", r"\\").replace("'", r"\'")
    return f"$'{visible(word)}'"
