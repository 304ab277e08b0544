"""`minisd sweep PROMPT -I FILE -f 0.2,0.4,0.6,0.8 -s 10,20,50`: many settings, one table.

The folder of --to gets the pictures, one for each combination of the values; table.csv; page.html,
which sorts and filters; and sheet.png, with labels. After an interruption, the same command
continues the sweep: what is in the folder is not drawn again. docs/sweeps.md has more.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from minisd.checkpoint.load import check_device
from minisd.cli import sheets
from minisd.cli.messages import visible
from minisd.cli.model_files import find_model, find_vae
from minisd.cli.studio import Studio
from minisd.cli.switches import (
    LISTS,
    add_model_switches,
    add_recipe_switches,
    check_text,
    recipe_from,
    refuse,
)
from minisd.figures.contact_sheet import resized, sweep_sheet
from minisd.files import check_file, check_folder, is_marked, png_bytes, write_file
from minisd.images import open_image, resize
from minisd.recipes import Recipe
from minisd.recipes.dream import option_value
from minisd.recipes.metadata import Model
from minisd.sweeps.axes import FIELDS, OPTION, caption, combinations, with_steps_run
from minisd.sweeps.cluster import LOCAL
from minisd.sweeps.driver import Order, Sweep
from minisd.sweeps.merge import merge
from minisd.sweeps.metrics import DEFAULTS, METRICS, PREVIOUS
from minisd.sweeps.model import Source
from minisd.sweeps.recipe_lists import read_recipes, to_recipe, to_value
from minisd.sweeps.table import check_own

HELP = "draw many settings: a table, a page and contact sheets of them"
SHEET = "sheet.png"
MOST_TILES = 1000  # pictures on one sheet
SECONDS = 60  # between lines on the progress, where the output is not a terminal


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "prompt",
        nargs="*",
        help="what to draw; [words in brackets] are avoided. Or: merge FOLDER..., which puts the "
        "rows of several folders into that of --to",
    )
    add_recipe_switches(parser, lists=True)
    add_model_switches(
        parser, torch_only="the rows of a sweep are computed by torch, so that they can be compared"
    )
    add = parser.add_argument
    add("--grid", action="append", default=[], metavar="FIELD=VALUE,...",
        help="the values of any field of a recipe (prompt, guidance, schedule, image, options.eta, "
             "...): all combinations are drawn. FIELD=@FILE: a value from each line of a file"
        )  # fmt: skip
    add("--from", dest="from_list", metavar="FILE",
        help="draw the recipes of a .jsonl or .csv file; the switches fill what it leaves out"
        )  # fmt: skip
    add("--to", default="outputs/sweep", metavar="FOLDER",
        help="folder for everything (outputs/sweep); an interrupted sweep continues")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="processes of this machine, each with its share of the cores (1); with --ray: actors"
        )  # fmt: skip
    add("--shard", metavar="K/N",
        help="draw only the K-th part of N; each part may run on another machine")  # fmt: skip
    add("--ray", nargs="?", const=LOCAL, metavar="ADDRESS",
        help="draw on a Ray cluster: an actor for each GPU, or for some cores. Without an address, "
             "Ray is started on this machine")  # fmt: skip
    add("--batch", type=int, metavar="N",
        help="pictures that a worker draws at the same time (16 of 64x64 pixels, fewer of larger "
             "ones)")  # fmt: skip
    add("--metrics", metavar="NAME,...", default=",".join(DEFAULTS),
        help=f"what to measure: {', '.join((*METRICS, PREVIOUS))}, FILE.py:FUNCTION; none: nothing "
             f"({','.join(DEFAULTS)})")  # fmt: skip
    add("--latents", action="store_true", help="also keep the final latents")
    add("--no-pictures", action="store_true", help="keep the table only")
    add("--tile", type=int, default=96, metavar="PX",
        help="size of a picture on the sheet (96)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.tile < 1:
        raise ValueError(f"--tile must be 1 or more, not {args.tile}")
    folder = check_folder(args.to)
    if args.prompt[:1] == ["merge"]:
        rows = merge([Path(each) for each in args.prompt[1:]], folder)
        print(f"{folder / 'table.csv'}, of {rows} rows")
        return 0
    if len(args.prompt) > 1:
        remedy = "put a prompt that has spaces in quotes"
        raise ValueError(f"{' '.join(args.prompt[1:])!r} belongs to no switch: {remedy}")
    recipes = recipes_of(args)
    for name in ("batch", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, not {getattr(args, name)}")
    sheet = folder / SHEET
    if not args.no_pictures:
        for path in {each for recipe in recipes for each in (recipe.image, recipe.mask) if each}:
            check_file(sheet, SHEET, [path], lambda _: True)
        check_own(sheet, is_marked)
    order, path = order_of(args)
    is_studio = order.is_here and not order.source.is_function
    model = (lambda: Studio(args).sd) if is_studio else None
    result = order.draw(recipes, folder, model, Rate(folder))
    facts = order.facts._replace(name=path.stem if path else "minisd's own weights")
    return report(result, folder, args.tile, facts)


# ---- what was typed ------------------------------------------------------------------------------


def recipes_of(args: argparse.Namespace) -> list[Recipe]:
    """The recipes of the file and of the switches. Raises ValueError, OSError."""
    values = {name: value for name, value in vars(args).items() if name != "prompt"}
    lists = {name: values.pop(name) for name in LISTS if name in values}
    for text in args.grid:
        name, choices = grid_values(text)
        lists[name] = choices
    if args.prompt:
        values["prompt"] = args.prompt[0]
    elif args.from_list is None and "prompt" not in lists:
        raise ValueError("say what to draw, as in: minisd sweep fire -S 1,2,3")
    base = recipe_from(values)
    if args.from_list is not None:
        single = {name: lists.pop(name)[0] for name in list(lists) if len(lists[name]) == 1}
        bases = read_recipes(args.from_list, replace(base, **single))
    else:
        bases = [base]
    recipes = [recipe for each in bases for recipe in combinations(each, lists)]
    for prompt in {recipe.prompt for recipe in recipes}:
        check_text(prompt)
    if getattr(args, "steps_after", None):
        return with_steps_run(recipes, args.steps_after)
    return recipes


def grid_values(text: str) -> tuple[str, list[Any]]:
    """`FIELD=VALUE,VALUE` or `FIELD=@FILE`. Raises ValueError, OSError."""
    name, equals, rest = text.partition("=")
    is_option = name.startswith(OPTION)
    if not equals or not rest or (name not in FIELDS and not is_option):
        example = "write FIELD=VALUE,VALUE, as in guidance=3,7.5"
        raise ValueError(f"--grid {text}: {example}. The fields are {', '.join(FIELDS)}")
    if rest.startswith("@"):
        try:
            lines = Path(rest[1:]).expanduser().read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{rest[1:]} is not text in UTF-8") from None
        words = [line.strip() for line in lines if line.strip()]
        if not words:
            raise ValueError(f"{rest[1:]} has no lines")
    else:
        words = rest.split(",")
    try:
        if is_option:
            return name, [option_value(f"value={word}")["value"] for word in words]
        return name, [None if word == "default" else to_value(name, word) for word in words]
    except ValueError as error:
        raise ValueError(f"--grid {name}: {error}") from None


def order_of(args: argparse.Namespace) -> tuple[Order, Path | None]:
    """How the sweep is drawn; the model's file. Raises ValueError, OSError."""
    is_function = ".py:" in (args.model or "")  # a function that makes the model
    path = Path(args.model) if is_function else find_model(args.model)
    vae = find_vae(args.vae, Model())
    if is_function and (vae or args.ema or args.prediction):
        raise ValueError("--vae, --ema and --prediction are for a checkpoint, not for FILE.py")
    if args.device:
        check_device(args.device, "--device")
    source = Source(
        None if path is None else str(path),
        None if vae is None else str(vae),
        bool(args.ema),
        args.prediction,
        args.device,
        args.dtype,
    )
    if args.exact and args.dtype != "float32":
        raise ValueError(f"--exact is for --dtype float32, not {args.dtype}")
    metrics = () if args.metrics == "none" else tuple(args.metrics.split(","))
    order = Order(
        source,
        source.facts(),
        args.workers,
        metrics,
        args.batch,
        shard_of(args.shard),
        args.ray,
        not args.no_pictures,
        args.latents,
        refuse(args),
    )
    return order, path


def shard_of(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard {text}: write K/N, from 1/N to N/N, as in 3/16")
    return int(match[1]), int(match[2])


# ---- what is printed and drawn -------------------------------------------------------------------


class Rate:
    """Shows the rows finished, their rate and the time left: a bar, or a line each minute."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.bar: tqdm | None = None
        self.first = self.printed = 0.0
        self.at_first = 0

    def __call__(self, finished: int, total: int) -> None:
        now = time.monotonic()
        if self.bar is None:
            if finished:
                print(f"{finished} of {total} pictures are already in {self.folder}")
            self.bar = tqdm(
                total=total, initial=finished, unit="picture", disable=None, leave=False
            )
            self.first = self.printed = now
            self.at_first = finished
            return
        self.bar.update(finished - self.bar.n)
        if self.bar.disable and now - self.printed > SECONDS:
            self.printed = now
            rate = (finished - self.at_first) / (now - self.first)
            left = (total - finished) / rate / 60
            words = f"{rate:.3g} a second, {left:.0f} minutes left"
            print(f"{finished} of {total} pictures, {words}", file=sys.stderr, flush=True)
        if finished == total:
            self.bar.close()


def report(result: Sweep, folder: Path, tile: int, facts: Model) -> int:
    """Draw the contact sheets, and print where everything is. Returns the exit status."""
    failed = result.failed
    if len(failed) == len(result.rows):
        raise ValueError(failed[0]["error"])
    rows = [row for row in result.rows if row.get("file")]
    written = [result.table.name, "page.html"]
    for n, i in enumerate(range(0, len(rows), MOST_TILES), 1):
        path = folder / (SHEET if n == 1 else f"sheet-{n}.png")
        draw_sheet(rows[i : i + MOST_TILES], path, tile, facts)
        written.insert(n - 1, path.name)
    print(f"{folder / written[0]}, {', '.join(written[1:])}, of {len(result.rows)} pictures")
    if failed:
        problem = (
            f"{len(failed)} of {len(result.rows)} rows failed; the first: {failed[0]['error']}"
        )
        print(f"minisd: {visible(problem)}", file=sys.stderr)
    return 1 if failed else 0


def draw_sheet(rows: Sequence[dict[str, Any]], path: Path, tile: int, facts: Model) -> None:
    recipes = [
        to_recipe({name: row[name] for name in FIELDS if name in row}, row["key"]) for row in rows
    ]
    images = []
    for row in rows:
        with Image.open(path.parent / row["file"]) as image:
            images.append(resized(image, tile))
    init_image = None
    if recipes[0].image is not None and len({recipe.image for recipe in recipes}) == 1:
        init_image = resize(open_image(recipes[0].image), (rows[0]["width"], rows[0]["height"]))
    sheet = sweep_sheet(recipes, images, init_image, tile)
    texts = sheets.texts(caption(recipes), recipes, facts)
    write_file(path, png_bytes(sheet, texts), is_marked)
