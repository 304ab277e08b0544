"""`minisd bisect A B PROMPT ...`: the first step and module at which two configurations part.

A and B are words with commas between: dtype=bfloat16, device=cuda, threads=2, exact, model=FILE,
mkldnn=off, tf32=on; `same` is what the other switches say. B can also be a trace (.safetensors),
such as another program's latents: then the first step is named.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

from minisd.cli.commands import img2img
from minisd.cli.messages import visible
from minisd.cli.studio import Studio
from minisd.figures.growth import growth_chart
from minisd.files import MARK, check_file, open_folder, png_bytes, write_named
from minisd.observe.trace import Trace
from minisd.observe.trace_file import load_trace
from minisd.proof.bisect import (
    FLAGS,
    ROUNDING,
    Configuration,
    bisect,
    first_step_apart,
    growth,
)
from minisd.recipes import Recipe, prepare

HELP = "the first step and module at which two configurations part"
DTYPES = ("float32", "bfloat16", "float16")
WORDS = f"dtype=, device=, threads=, model=, exact, {', '.join(f'{name}=on' for name in FLAGS)}"


def configure(parser: argparse.ArgumentParser) -> None:
    text = f"words with commas between ({WORDS}), or `same`"
    parser.add_argument("a", metavar="A", help=text)
    parser.add_argument("b", metavar="B", help=f"{text}; or a trace, of another program too")
    img2img.configure(parser)
    add = parser.add_argument
    add("--tolerance", type=float, metavar="X",
        help="the relative difference that counts as rounding (0 if both round in the same way, "
        "else that of A's dtype)")  # fmt: skip
    add("--to", metavar="FILE",
        help="write a .png of how the two grow apart from module to module")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    recipe = img2img.typed_request(args).recipe
    if args.to:
        check_file(args.to, "growth.png", [recipe.image, recipe.mask])
    first, second = words_of(args.a, args), words_of(args.b, args)
    if isinstance(first, Path):
        raise ValueError("only B can be a trace: A is run")
    if isinstance(second, Path):
        return against_trace(recipe, configuration(first, args), second, args.tolerance)
    studio = Studio(with_words(first, args))
    a = configuration(first, args, studio)
    is_shared = all(first.get(key) == second.get(key) for key in ("dtype", "device", "model"))
    b = configuration(second, args, studio if is_shared else None)
    recipe = prepare(recipe, a.sd).recipe  # with a seed
    parting = bisect(recipe, a, b, tolerance=args.tolerance)
    print(visible(parting.line()))
    if args.to:
        named = parting.first
        step = int(named.place.split()[1]) if named and named.place.startswith("step") else 1
        grown = growth(recipe, a, b, step)
        title = f"A: {args.a}, B: {args.b}, step {step}: {parting.line()}"
        sheet = growth_chart(grown.paths, grown.distances, title, named and named.path)
        folder = open_folder(Path(args.to).parent)
        print(write_named(folder / Path(args.to).name, png_bytes(sheet, MARK | {"Title": title})))
    return 0 if parting.first is None else 1


def against_trace(recipe: Recipe, a: Configuration, path: Path, tolerance: float | None) -> int:
    other = load_trace(path)
    with a.applied(), Trace(a.sd) as trace:
        prepare(recipe, a.sd).draw(trace)
    tolerance = ROUNDING[a.dtype] if tolerance is None else tolerance
    step = first_step_apart(trace, other, tolerance)
    if step is None:
        print(f"they do not part by more than {tolerance:g} in {trace.n_steps} steps")
        return 0
    place = f"the start of step {step}" if step <= len(trace.x) else "the end of the last step"
    cause = "before the first step" if step == 1 else f"in step {step - 1}"
    print(f"they part {cause}: at {place}, x differs by more than {tolerance:g}")
    return 1


def words_of(text: str, args: argparse.Namespace) -> dict[str, Any] | Path:
    """The settings in the words of A or B; or the path of a trace. Raises ValueError."""
    if "=" not in text and text.endswith(".safetensors"):
        return Path(text)
    settings: dict[str, Any] = {}
    for word in text.split(",") if text != "same" else []:
        key, _, value = word.partition("=")
        if key == "exact" and value in ("", "on", "off"):
            settings["exact"] = value != "off"
        elif key in FLAGS and value in ("on", "off"):
            settings[key] = value == "on"
        elif key == "threads" and value.isdecimal() and 0 < int(value) <= 256:
            settings[key] = int(value)
        elif (key == "dtype" and value in DTYPES) or (key in ("device", "model") and value):
            settings[key] = value
        else:
            raise ValueError(f"{word!r} is not a setting; choose from {WORDS}, same")
    if settings.get("exact") and settings.get("dtype", args.dtype) != "float32":
        raise ValueError("exact mode is for dtype=float32")
    return settings


def with_words(settings: dict[str, Any], args: argparse.Namespace) -> argparse.Namespace:
    """The switches of the command with the model that the words choose."""
    changed = copy.copy(args)
    for key in ("dtype", "device", "model"):
        setattr(changed, key, settings.get(key, getattr(args, key)))
    return changed


def configuration(
    settings: dict[str, Any], args: argparse.Namespace, studio: Studio | None = None
) -> Configuration:
    sd = (studio or Studio(with_words(settings, args))).sd
    flags = {name: settings[name] for name in FLAGS if name in settings}
    threads = settings.get("threads", torch.get_num_threads())
    return Configuration(sd, settings.get("exact", False), threads, flags)
