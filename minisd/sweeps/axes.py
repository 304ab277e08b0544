"""Several runs from one line of switches: what `minisd strip` and `minisd sweep` have in common."""

import argparse
import random
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from minisd.cli import switches
from minisd.cli.pictures import Studio, check_names, open_init
from minisd.schedule import steps_after
from minisd.trace.ledger import CALLS

if TYPE_CHECKING:
    from torch import Tensor

AXES = ("strength", "steps", "sampler", "seed")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw; [words in brackets] are avoided")
    switches.configure(parser, several=True)
    switches.configure_model(parser)


def settings_of(args: argparse.Namespace) -> list[argparse.Namespace]:
    """One namespace for each combination of the lists given: strengths outermost, then steps,
    samplers, seeds. A seed that was not given is drawn, one for all."""
    lists = [value if isinstance(value, list) else [value] for value in map(vars(args).get, AXES)]
    if lists[-1] == [None]:
        lists[-1] = [random.SystemRandom().randrange(2**32 - 1)]
    if not args.init_img:
        lists[0] = lists[0][:1]  # strengths mean nothing
    runs = []
    for values in product(*lists):
        one = argparse.Namespace(**vars(args) | dict(zip(AXES, values)))
        if args.steps_after and args.init_img:
            one.steps = steps_after(args.steps_after, one.strength)
        if one not in runs:  # a value was given twice
            check_names(one, list(CALLS))
            runs.append(one)
    return runs


def differing(runs: list[argparse.Namespace]) -> list[str]:
    """The axes along which these runs differ."""
    return [axis for axis in AXES if len({getattr(one, axis) for one in runs}) > 1]


def said(one: argparse.Namespace, axes: list[str] | tuple[str, ...]) -> str:
    """The run's place on these axes, in words."""
    words = {
        "strength": f"strength {one.strength:g}",
        "steps": f"{one.steps} steps",
        "sampler": one.sampler,
        "seed": f"seed {one.seed}",
    }
    return ", ".join(words[axis] for axis in axes)


def caption(runs: list[argparse.Namespace]) -> str:
    """What all runs share."""
    one, differ = runs[0], differing(runs)
    axes = [axis for axis in AXES if axis not in differ and (axis != "strength" or one.init_img)]
    schedule = f", {one.schedule} grid" if one.schedule else ""
    return f'"{one.prompt}", {said(one, axes)}{schedule}, guidance {one.cfg_scale:g}'


class Prepared(NamedTuple):
    """What all runs have in common, made once."""

    studio: Studio
    picture: Image.Image | None  # the init image at its final size
    size: tuple[int, int]
    prompt: "Tensor"  # text states
    negative: "Tensor"


def prepare(args: argparse.Namespace) -> Prepared:
    from minisd.conditioning import text_states
    from minisd.images import resize

    studio = Studio(args.model, args.device, args.dtype)
    picture = open_init(args)
    size = studio.sizes(args, picture)
    if picture is not None and picture.size != size:
        picture = resize(picture, size)
    prompt, negative = text_states(studio.sd, args.prompt, normalize=not args.skip_normalize)
    return Prepared(studio, picture, size, prompt, studio.sd.text_states(negative))
