"""`minisd lessons [FOLDER]`: the course's notebooks, copied where you can work in them."""

import argparse
import shlex

from minisd.lessons.copying import copy_lessons

HELP = "copy the course's ten notebooks into a folder, and say how to open them"
FOLDER = "minisd-lessons"


def configure(parser: argparse.ArgumentParser) -> None:
    text = f"where to ({FOLDER}); files that are there are kept"
    parser.add_argument("folder", nargs="?", default=FOLDER, metavar="FOLDER", help=text)


def run(args: argparse.Namespace) -> int:
    new, kept = copy_lessons(args.folder)
    if kept:
        print(f"kept, because they were there: {', '.join(path.name for path in kept)}")
    for path in new:
        print(path)
    first = next(path for path in sorted([*new, *kept]) if path.suffix == ".ipynb")
    print(
        f"\nTo open the first lesson:  jupyter lab {shlex.quote(str(first))}\n"
        "(If there is no Jupyter yet: pip install jupyterlab. VS Code opens the files too.)\n"
        "Put a drawing of your own beside the notebooks as my-drawing.png."
    )
    return 0
