"""The switches that commands with a sheet share, and how a sheet is written."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from minisd.cli.switches import Request
from minisd.files import (
    MARK,
    check_file,
    check_folder,
    next_number,
    numbered,
    open_folder,
    png_bytes,
    write_first,
    write_named,
)
from minisd.recipes import Recipe
from minisd.recipes.dream import dream_line
from minisd.recipes.metadata import Model


def add_switches(parser: argparse.ArgumentParser, rows: str, choices: list[str]) -> None:
    text = f"the rows of tiles, with commas between: {', '.join(choices)} ({rows})"
    parser.add_argument("--rows", default=rows, metavar="ROW,...", help=text)
    parser.add_argument("--tile", type=int, default=48, metavar="PX", help="size of a tile (48)")
    parser.add_argument(
        "--to", metavar="FILE", help="write the sheet to this .png file (default: a new file in -o)"
    )


def check_switches(
    args: argparse.Namespace, choices: list[str], inputs: Sequence[str | Path | None]
) -> list[str]:
    """The rows of --rows. Raises ValueError or OSError if the sheet could not be written.

    inputs: the files that the command reads, over which nothing is written
    """
    rows = args.rows.split(",")
    for name in rows:
        if name not in choices:
            raise ValueError(f"--rows {name}: choose from {', '.join(choices)}")
    if args.tile < 1:
        raise ValueError(f"--tile must be 1 or more, not {args.tile}")
    if args.to:
        check_file(args.to, "sheet.png", inputs)
    else:
        check_folder(folder_of(args))
    return rows


def folder_of(args: argparse.Namespace) -> Path:
    """The folder of the sheet: that of --to, or -o."""
    if args.to:
        return Path(args.to).parent
    return Path(getattr(args, "outdir", Request.outdir))


def texts(title: str, recipes: Sequence[Recipe], model: Model) -> dict[str, str]:
    """The text chunks of a sheet: a title, a line with the settings of each run, the model."""
    drawn_with = f"{model.name} (SHA-256 {model.sha256}), {model.dtype}, minisd {model.version}"
    lines = "\n".join(map(dream_line, recipes))
    return MARK | {"Title": title, "Description": lines, "Comment": f"drawn with {drawn_with}"}


def save(sheet: Image.Image, args: argparse.Namespace, ending: str, chunks: dict[str, str]) -> Path:
    """Write the sheet to the file of --to, or to a new file in -o."""
    folder, data = open_folder(folder_of(args)), png_bytes(sheet, chunks, optimize=True)
    if args.to:
        return write_named(folder / Path(args.to).name, data)
    return write_first(numbered(folder, next_number(folder), ending), data)
