"""`minisd explore PROMPT -I FILE`: the explorer page of a drawing."""

import argparse
import random
import shlex
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minisd.cli import switches
from minisd.schedule import SCHEDULES, start_index

DEFAULT = "explorer.html"
STRENGTHS = [round(i / 10, 1) for i in range(11)]


def configure(parser: argparse.ArgumentParser) -> None:
    add, between = parser.add_argument, switches.between
    add("prompt", help="what to draw; [words in brackets] are avoided")
    add("-I", "--init_img", "--init-img", metavar="FILE", required=True,
        help="the drawing; it is scaled to fit inside width x height")  # fmt: skip
    add("-f", "--strengths", type=strengths, metavar="X,X,...",
        default=STRENGTHS,
        help="stops of the slider, each 0..1 (0,0.1,...,1)")  # fmt: skip
    add("-s", "--steps", "--ddim_steps", type=between(1, 200, int), default=20, metavar="N",
        help="steps of the whole schedule (20)")  # fmt: skip
    add("-S", "--seed", type=between(0, 2**32 - 1, int), metavar="N",
        help="where the random numbers start (a new one)")  # fmt: skip
    add("-W", "--width", "--W", type=between(1, 16384, int), metavar="PX",
        help="width (the model's native one)")  # fmt: skip
    add("-H", "--height", "--H", type=between(1, 16384, int), metavar="PX", help="height")
    add("-C", "--cfg_scale", "--scale", "--guidance", type=between(0, 1000), default=7.5,
        metavar="X", help="classifier-free guidance, how much the prompt counts (7.5)")  # fmt: skip
    add("-A", "-m", "--sampler", default="k_lms", metavar="NAME", help="sampler (k_lms)")
    add("--schedule", metavar="NAME", help="model, karras or ddim (the sampler's own)")
    add("-o", "--output", metavar="FILE.html", help=f"the page, a new file ({DEFAULT})")
    switches.configure_model(parser)


def strengths(text: str) -> list[float]:
    """`0.3,0.5,0.8` -> the numbers, in order, each once."""
    return sorted({switches.between(0, 1)(part) for part in text.split(",")})


def run(args: argparse.Namespace) -> int:
    from minisd.cli.outputs import write_new
    from minisd.cli.pictures import Studio, check_names, open_init
    from minisd.conditioning import text_states
    from minisd.explorer.attention import pieces_of
    from minisd.explorer.page import data_uri, page, run_data, tile
    from minisd.explorer.runs import runs
    from minisd.images import resize
    from minisd.prompts import parse
    from minisd.samplers import SAMPLERS

    path = output_path(args.output)
    args.with_variations, args.init_mask, args.fit = [], None, True
    args.width_given, args.height_given = args.width, args.height
    check_names(args, list(SAMPLERS))
    picture = open_init(args)
    if picture.mode == "RGBA":
        said = "transparency is not used here: all of the picture is drawn over"
        warnings.warn(said, stacklevel=1)
        picture = picture.convert("RGB")
    pieces = pieces_of(parse(args.prompt).parts)
    studio = Studio(args.model, args.device, args.dtype)
    sd = studio.sd
    size = studio.sizes(args, picture)
    if picture.size != size:
        picture = resize(picture, size)
    prompt, negative = text_states(sd, args.prompt)
    seed = random.SystemRandom().randrange(2**32 - 1) if args.seed is None else args.seed
    schedule = args.schedule or ("ddim" if args.sampler == "ddim" else "model")
    settings: dict[str, Any] = {
        "steps": args.steps,
        "sampler": args.sampler,
        "schedule": schedule,
        "guidance": args.cfg_scale,
        "seed": seed,
    }
    total = sum(args.steps - start_index(args.steps, strength) for strength in args.strengths)
    with tqdm(total=total, desc=f"seed {seed}", disable=None, leave=False) as bar:

        def observe(name: str, **_: object) -> None:
            bar.update(name == "step")

        drawn = runs(
            sd, pieces, prompt, picture, args.strengths,
            negative_prompt=negative, observe=observe, **settings
        )  # fmt: skip
        found, words = [], []
        for one in drawn:  # tensors are let go one strength at a time
            words = [word.text for word in one.maps.words]
            found.append(run_data(sd, one))
    data = settings | {
        "prompt": args.prompt,
        "words": words[: len(found[0]["shares"])],
        "size": size,
        "latent": [side // sd.vae.factor for side in size],
        "sigmas": SCHEDULES[schedule](args.steps),
        "drawing": data_uri(tile(picture), exact=max(size) <= 64),
        "runs": found,
        "model": sd.name,
        "version": version("minisd"),
        "command": command_line(args, seed),
    }
    text = page(f"{args.prompt} · minisd explorer", data)
    write_new(path, text.encode("utf-8", "replace"))
    print(f"{path}: {len(found)} strengths, {total} steps, {len(text) / 1e6:.2f} MB")
    return 0


def output_path(given: str | None) -> Path:
    """Where the page goes: a name that is free. Raises OSError before any work is done."""
    if given is None:
        path, n = Path(DEFAULT), 1
        while path.exists():
            n += 1
            path = Path(DEFAULT).with_stem(f"{Path(DEFAULT).stem}-{n}")
        return path
    path = Path(given)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file, as in -o {path / DEFAULT}")
    if path.exists():
        raise FileExistsError(f"{path} is there already; minisd never writes over a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def command_line(args: argparse.Namespace, seed: int) -> str:
    """What makes this page again, with the settings that count."""
    said = ["minisd", "explore", args.prompt, "-I", Path(args.init_img).name, "-s", str(args.steps)]
    said += ["-S", str(seed), "-C", f"{args.cfg_scale:g}", "-A", args.sampler]
    if args.strengths != STRENGTHS:
        said += ["-f", ",".join(f"{strength:g}" for strength in args.strengths)]
    given = {"--schedule": args.schedule, "--model": args.model and Path(args.model).name}
    given |= {"-W": args.width_given, "-H": args.height_given}
    for switch, value in given.items():
        said += [switch, str(value)] if value else []
    return shlex.join(said)
