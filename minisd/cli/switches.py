"""The switches of a picture, the same at the shell and at the prompt, and how a line is read.

Names, defaults and ranges are InvokeAI's (ldm/invoke/args.py), CompVis's script's names are
aliases.
"""

import argparse
import re
import shlex
from typing import NoReturn


class SwitchError(ValueError):
    """A switch that can't be understood."""


class Switches(argparse.ArgumentParser):
    """A parser that raises where argparse would print its usage and end the program."""

    def error(self, message: str) -> NoReturn:
        raise SwitchError(message.replace("argument ", "", 1))


def between(low: float, high: float, kind: type = float):
    """A type for argparse: a number in low..high."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low:g} and {high:g}")
        return value

    return convert


def seed_weights(text: str) -> list[tuple[int, float]]:
    """`seed:weight,seed:weight`"""
    pairs = []
    for pair in text.split(","):
        seed, colon, weight = pair.partition(":")
        if not colon:
            raise argparse.ArgumentTypeError(f"{pair!r} is not seed:weight")
        pairs.append((between(0, 2**32 - 1, int)(seed), between(0, 1)(weight)))
    return pairs


def listed(kind):
    """A type for argparse: values with commas between them."""
    return lambda text: [kind(part) for part in text.split(",")]


def configure(parser: argparse.ArgumentParser, picture: bool = True, several: bool = False) -> None:
    """Add the switches of one line. picture False leaves out what only makes sense with -I; several
    gives -s, -S, -A and -f lists, of what is written with commas between."""
    add = parser.add_argument
    # fmt: off
    whole = between(1, 10_000, int)
    each = listed if several else lambda kind: kind
    add("-s", "--steps", "--ddim_steps", type=each(whole), default=50, metavar="N",
        help="steps of the whole schedule (50)")
    add("-S", "--seed", type=each(between(-999, 2**32 - 1, int)), metavar="N",
        help="where the random numbers start; the same seed, the same picture (a new one). "
        "At the prompt -1 is the last picture's, -2 the one before")
    add("-n", "--iterations", "--n_iter", "--n_samples", type=whole, default=1, metavar="N",
        help="how many pictures, each with a seed that follows from the one before (1)")
    add("-W", "--width", "--W", type=between(1, 16384, int), metavar="PX",
        help="width (the model's native one)")
    add("-H", "--height", "--H", type=between(1, 16384, int), metavar="PX",
        help="height; with -I both count only together with --fit")
    add("-C", "--cfg_scale", "--scale", "--guidance", type=between(0, 1000), default=7.5,
        metavar="X", help="classifier-free guidance, how much the prompt counts (7.5)")
    add("-A", "-m", "--sampler", type=each(str), default="k_lms", metavar="NAME",
        help="sampler (k_lms)")
    add("--schedule", metavar="NAME", help="model, karras, exponential or ddim (the sampler's own)")
    add("-v", "--variation_amount", type=between(0, 1), default=0.0, metavar="X",
        help="0..1, how far each of the -n pictures' noise is led from the seed's own (0)")
    add("-V", "--with_variations", type=seed_weights, default=[], metavar="SEED:WEIGHT,...",
        help="lead the noise of -S towards that of other seeds")
    add("-x", "--skip_normalize", action="store_true",
        help="take a blend's weights as they are: do not scale them to sum to 1")
    add("-g", "--grid", action="store_true", help="also write all pictures as one")
    add("-o", "--outdir", default="outputs/img-samples", metavar="FOLDER",
        help="where pictures go (outputs/img-samples)")
    if not picture:
        return
    add("-I", "--init_img", "--init-img", metavar="FILE", help="the picture to draw on top of. "
        "At the prompt -1 is the last one made, -2 the one before")
    add("-f", "--strength", type=each(between(0, 1)), default=0.75, metavar="X",
        help="0..1: 0 keeps the picture, 1 ignores it (0.75)")
    add("--steps-after", "--steps_after", type=whole, metavar="N",
        help="with -I: ask for as many steps that N are run at this strength, whatever -s says")
    add("-T", "-fit", "--fit", action="store_true",
        help="scale the picture, up or down, to fit inside width x height")
    add("-M", "--init_mask", metavar="FILE", help="redraw where this picture is transparent, or "
        "black if it has no transparency; without it, where the picture of -I is")
    add("--no_paste", action="store_true",
        help="inpainting: leave the kept part as the decoder gives it, do not paste it back")
    add("--variants", type=between(0, 1000, int), default=0, metavar="N",
        help="then redraw each result N times with the same words and strength")
    # fmt: on


def configure_model(parser: argparse.ArgumentParser) -> None:
    """Add the switches that choose the model: at the shell only."""
    add = parser.add_argument
    # fmt: off
    add("--model", "--ckpt", metavar="FILE",
        help="an SD 1.x checkpoint, by path or by name (minisd's own small weights)")
    add("--device", metavar="NAME", help="cpu, cuda, ... (cuda if there is one)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
        help="arithmetic of UNet and autoencoder (float32)")
    # fmt: on


def read_line(line: str, defaults: argparse.Namespace | None = None) -> argparse.Namespace:
    """A line of the prompt, `words -switches`, as InvokeAI 2.1 and later split it.

    The words end before the first space that is followed by `-` or `--` and a letter, or with the
    closing quote if the line begins with one. Raises SwitchError, ValueError.
    """
    words, rest = split_line(line)
    parser = Switches(prog="", add_help=False)
    configure(parser)
    for switch in rest:
        if re.match(r"-o[^u]", switch):
            raise SwitchError(f"{switch!r}: write -o, a space and the folder")
    args = parser.parse_args(rest, argparse.Namespace(**vars(defaults)) if defaults else None)
    args.prompt = words
    return args


def split_line(line: str) -> tuple[str | None, list[str]]:
    line = line.strip()
    if line.startswith("-"):
        return None, shell_words(line)
    if line.startswith('"'):
        first, *rest = shell_words(line)
        return first, rest
    found = re.match(r"(.+?)\s(--?[a-zA-Z].*)$", line, re.S)
    return (found[1].strip(), shell_words(found[2])) if found else (line, [])


def shell_words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise SwitchError(f"{error} in {text!r}") from None
