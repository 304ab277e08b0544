"""`minisd sweep PROMPT -I FILE -f 0.2,0.4,0.6,0.8 -s 10,20,50`: many settings, one contact sheet.

Into the folder that --to names go the pictures, one a combination of strengths, step counts,
samplers and seeds; sheet.png, with labels; and distances.csv. The text is encoded once, and so is
the init image; runs are made --batch at a time (lockstep.py). Started again with the same settings
after an interruption, it goes on where it was: a picture that is there is not made again.

Distances are the root mean square over pixels and channels of the difference of two pictures, as
they are in their files, in levels of 255: to the init image, and to the picture whose value on one
axis is the one before, all else being equal.
"""

import argparse
import csv
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from minisd.cli import outputs
from minisd.trace import runs as several
from minisd.trace.ledger import Ledger, plan
from minisd.trace.sheet import PALE, Cell, column, table, written

if TYPE_CHECKING:
    from minisd.checkpoint import StableDiffusion

BATCH = 16  # of pictures of 64x64; fewer of larger ones
SETTINGS = "sweep.json"
Runs = list[argparse.Namespace]


def configure(parser: argparse.ArgumentParser) -> None:
    several.configure(parser)
    parser.add_argument("--to", default="outputs/sweep", metavar="FOLDER",
        help="folder for everything (outputs/sweep); an interrupted sweep goes on")  # fmt: skip
    parser.add_argument("--batch", type=int, metavar="N",
        help="runs at a time (16 of 64x64 pixels, fewer of larger ones)")  # fmt: skip
    parser.add_argument("--tile", type=int, default=96, metavar="PX",
        help="size of a picture on the sheet (96)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.with_variations or args.variation_amount or args.init_mask or args.iterations > 1:
        raise ValueError("a sweep goes without -n, -v, -V and -M: give it several seeds with -S")
    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch must be 1 or more, not {args.batch}")
    if args.seed is None:
        args.seed = remembered_seed(Path(args.to))
    runs = several.settings_of(args)
    folder = outputs.open_folder(args.to)
    prepared = several.prepare(args)
    check_same(folder, args, prepared, runs[0].seed)
    make(runs, folder, prepared, args.batch)
    images = {i: Image.open(folder / file_name(one)).convert("RGB") for i, one in enumerate(runs)}
    write_csv(folder / "distances.csv", runs, images, prepared.picture)
    contact_sheet(runs, images, prepared.picture, args.tile).save(folder / "sheet.png")
    print(f"{folder}/sheet.png and distances.csv, of {len(runs)} pictures")
    return 0


# ---- making them -------------------------------------------------------------------------------


def file_name(one: argparse.Namespace) -> str:
    strength = f"f{one.strength:g}-" if one.init_img else ""
    return f"{strength}s{one.steps}-{one.sampler}-S{one.seed}.png"


def remembered_seed(folder: Path) -> list[int] | None:
    """The (first) seed of the sweep that is there, for one that is not given a seed."""
    try:
        return [json.loads((folder / SETTINGS).read_text())["seed"]]
    except (OSError, ValueError, LookupError):
        return None


def check_same(
    folder: Path, args: argparse.Namespace, prepared: several.Prepared, seed: int
) -> None:
    """Note the settings that all runs share beside the pictures; refuse a folder with others."""
    picture = prepared.picture
    shared = {
        "prompt": args.prompt,
        "guidance": args.cfg_scale,
        "schedule": args.schedule,
        "size": list(prepared.size),
        "init": None if picture is None else hashlib.sha256(picture.tobytes()).hexdigest(),
        "model": prepared.studio.sd.name,
        "dtype": args.dtype,
    }
    path = folder / SETTINGS
    if path.exists():
        there = json.loads(path.read_text())
        differ = [key for key in shared if there.get(key) != shared[key]]
        if differ:
            raise ValueError(
                f"{folder} holds a sweep with another {' and '.join(differ)}: name another folder"
            )
    path.write_text(json.dumps(shared | {"seed": seed}, indent=1))


def make(runs: Runs, folder: Path, prepared: several.Prepared, batch: int | None) -> None:
    """Draw what is not there yet, those of the same length together, longest first."""
    from minisd.trace.lockstep import lockstep

    missing = [one for one in runs if not (folder / file_name(one)).exists()]
    missing.sort(key=n_calls, reverse=True)
    width, height = prepared.size
    batch = batch or max(1, BATCH * 64 * 64 // (width * height))
    sd = encoding_once(prepared.studio.sd)
    if there := len(runs) - len(missing):
        print(f"{there} of {len(runs)} pictures are there already")
    with tqdm(total=len(missing), desc="sweep", unit="picture", disable=None, leave=False) as bar:
        for i in range(0, len(missing), batch):
            group = missing[i : i + batch]
            jobs = [drawing(one, prepared, sd) for one in group]
            images = [jobs[0](sd.unet)] if batch == 1 else lockstep(sd.unet, jobs)
            for one, image in zip(group, images):
                part = folder / f".{file_name(one)}.part"
                image.save(part, "PNG")
                os.replace(part, folder / file_name(one))
            bar.update(len(group))


def n_calls(one: argparse.Namespace) -> int:
    return plan(one.steps, one.strength if one.init_img else 1, one.sampler, one.schedule).calls


def drawing(
    one: argparse.Namespace, prepared: several.Prepared, sd: "StableDiffusion"
) -> Callable[..., Image.Image]:
    """The run, as a function of the network that it is to use; its ledger is checked."""
    from minisd.img2img import img2img
    from minisd.inpaint import inpaint, is_transparent
    from minisd.txt2img import txt2img

    def draw(unet: Callable) -> Image.Image:
        ledger = Ledger()

        def network(x, t, context):
            eps = unet(x, t, context)
            ledger.called(x, t, context, eps)
            return eps

        network.factor = unet.factor
        own = replace(sd, unet=network)
        picture = prepared.picture
        settings = {
            "steps": one.steps,
            "sampler": one.sampler,
            "schedule": one.schedule,
            "guidance": one.cfg_scale,
            "seed": one.seed,
            "negative_prompt": prepared.negative,
            "observe": ledger,
        }
        if picture is None:
            width, height = prepared.size
            return txt2img(own, prepared.prompt, width=width, height=height, **settings).image
        settings["strength"] = one.strength
        redraw = inpaint if is_transparent(picture) else img2img
        return redraw(own, prepared.prompt, picture, **settings).image

    return draw


def encoding_once(sd: "StableDiffusion") -> "StableDiffusion":
    """The same model, with an autoencoder that remembers the last picture that it encoded."""
    import torch

    memory: list[torch.Tensor] = []

    def encode(image: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        if noise is not None:
            return sd.vae.encode(image, noise)
        if not (memory and torch.equal(memory[0], image)):
            memory[:] = [image, sd.vae.encode(image)]
        return memory[1]

    return replace(
        sd, vae=SimpleNamespace(encode=encode, decode=sd.vae.decode, factor=sd.vae.factor)
    )


# ---- showing them ------------------------------------------------------------------------------


def write_csv(
    path: Path, runs: Runs, images: dict[int, Image.Image], init: Image.Image | None
) -> None:
    """A line a picture: its settings, and its distances to the init image and to its neighbours."""
    at = {place(one): i for i, one in enumerate(runs)}
    values = {
        axis: list(dict.fromkeys(getattr(one, axis) for one in runs)) for axis in several.AXES
    }
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        neighbours = [f"to_previous_{axis}" for axis in several.AXES]
        facts = ["file", *several.AXES, "steps_run", "sigma", "to_init"]
        out.writerow([*facts, *neighbours])
        for i, one in enumerate(runs):
            strength = one.strength if one.init_img else 1
            planned = plan(one.steps, strength, one.sampler, one.schedule)
            line = [file_name(one), *place(one), planned.run, f"{planned.sigma:.6g}"]
            line.append("" if init is None else f"{distance(images[i], init):.3f}")
            for k, axis in enumerate(several.AXES):
                j = values[axis].index(getattr(one, axis))
                before = (*place(one)[:k], values[axis][j - 1], *place(one)[k + 1 :])
                near = at.get(before) if j else None
                line.append("" if near is None else f"{distance(images[i], images[near]):.3f}")
            out.writerow(line)


def place(one: argparse.Namespace) -> tuple:
    return tuple(getattr(one, axis) for axis in several.AXES)


def distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square, in levels of 255."""
    pixels = [np.asarray(image.convert("RGB"), dtype=float) for image in (a, b)]
    return float(((pixels[0] - pixels[1]) ** 2).mean() ** 0.5)


def contact_sheet(
    runs: Runs, images: dict[int, Image.Image], init: Image.Image | None, tile: int
) -> Image.Image:
    """All pictures: across, the first axis that has several values; down, the others together."""
    across, *down = several.differing(runs) or ["steps"]
    columns = list(dict.fromkeys(getattr(one, across) for one in runs))
    rows: dict[str, list[Cell]] = {}
    heads: dict = {}
    for i, one in enumerate(runs):
        label = several.said(one, down).replace(", ", "\n") if down else ""
        line = rows.setdefault(label, [None] * len(columns))
        k = columns.index(getattr(one, across))
        line[k] = fitted(images[i], tile)
        heads[k] = several.said(one, [across])
    corner = fitted(init, tile) if init is not None else ""
    cells: list[list[Cell]] = [[corner, *(heads[k] for k in range(len(columns)))]]
    cells += [[label, *line] for label, line in rows.items()]
    sheet = table(cells, align="centre")
    return column([written(several.caption(runs), 12, PALE), sheet], margin=10, gap=0)


def fitted(image: Image.Image, tile: int) -> Image.Image:
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
