"""The switches, the same at the shell and at the prompt, and the Request that they make.

Names, defaults and ranges are InvokeAI's (recipes/dream.py). A switch that is not typed leaves no
trace in the namespace, so that a recipe from a picture, or the prompt's defaults, can show through.
A typed switch counts, also with its default as value. The value `default` takes a switch back, and
a switch without a value has an opposite (TAKE_BACK).
"""

import argparse
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NoReturn

from minisd.cli.messages import did_you_mean, visible
from minisd.more_samplers.guidance_rules import GUIDANCE_RULES
from minisd.recipes import DIALECTS, Recipe
from minisd.recipes.dream import BY_FIELD, BY_NAME, FLAGS, between, split_line
from minisd.schedule import SCHEDULES
from minisd.sweeps.axes import combinations, with_steps_run

# What `-h` says of each field of the recipe.
HELP = {
    "steps": ("N", "steps of the whole schedule (50)"),
    "seed": ("N", "seed of the random numbers: the same seed gives the same picture (default: a "
             "new seed). At the prompt, -1 is the last picture's, -2 the one before"),
    "width": ("PX", "width of the picture (the model's native size)"),
    "height": ("PX", "height. With -I, width and height count only together with --fit"),
    "guidance": ("X", "classifier-free guidance: how strongly the prompt counts (7.5); or "
                 "FILE.py:FUNCTION"),
    "guidance_rule": ("NAME", f"{', '.join(GUIDANCE_RULES)}, with -C as its scale; or "
                      "FILE.py:FUNCTION, without it (plain)"),
    "sampler": ("NAME", "the sampler, or FILE.py:FUNCTION, or MODULE:NAME of k-diffusion or "
                "diffusers (k_lms)"),
    "schedule": ("NAME", f"{', '.join(SCHEDULES)}, or FILE.py:FUNCTION (the sampler's own)"),
    "image": ("FILE", "the init image: the picture to draw on. At the prompt, -1 is the last "
              "picture, -2 the one before"),
    "strength": ("X", "0..1: 0 keeps the init image, 1 almost ignores it (0.75)"),
    "mask": ("FILE", "inpainting: redraw where this picture is transparent, or where it is black "
             "if it has no transparency. Without -M, redraw where the init image is transparent. "
             "An alpha or grey of 250 or more, of 255, is kept; 5 or less is redrawn; values in "
             "between change much less than in proportion. Of two greys, the lower is black"),
    "fit": (None, "scale the init image, up or down, to fit inside width x height, with its "
            "proportions as near as the multiples allow (--no-fit: not)"),
    "paste": (None, "inpainting: do not put the kept pixels back; show the decoder's picture "
              "(--paste: put them back)"),
    "variations": ("SEED:WEIGHT,...", "move the noise of -S towards the noise of these seeds"),
    "normalize": (None, "do not scale a blend's weights to sum to 1 (--normalize: do)"),
    "clip_skip": ("N", "end N - 1 layers before the text encoder's last, as AUTOMATIC1111 counts: "
                  "1 is none (1)"),
    "dialect": ("NAME", f"draw as another program would: {', '.join(DIALECTS)}. Its options, such "
                "as noise_source=CPU, are set with --set; minisd explain --dialect NAME lists "
                "them"),
    "negative_prompt": ("TEXT", "words to avoid, as other programs take them"),
    "options": ("OPTION=VALUE", "an option of the sampler or of the dialect, such as eta=0.5; "
                "brownian=True: noise of one Brownian path. May be repeated"),
}  # fmt: skip
OF_IMAGE = ("image", "strength", "mask", "fit", "paste")  # fields that need an init image
LISTS = ("steps", "seed", "sampler", "strength")  # fields that strip and sweep take lists of
RECIPE_FIELDS = {item.name for item in fields(Recipe)}
# The opposite of each switch without a value. It takes back what the prompt's defaults or a
# picture's recipe say.
TAKE_BACK = {
    "fit": "--no-fit",
    "paste": "--paste",
    "normalize": "--normalize",
    "grid": "--no-grid",
    "wrong_anyway": "--no-wrong-anyway",
    "self_contained": "--no-self-contained",
}
DEFAULT = "default"  # the value that takes back any other switch
NO_DEFAULT = object()  # of a switch whose default is not known here
EPILOG = f"The value {DEFAULT} takes a switch back, as in -S {DEFAULT} or --schedule {DEFAULT}."


@dataclass(frozen=True)
class Request:
    """One line: a recipe, how many pictures, where they go; and which fields were typed."""

    recipe: Recipe = field(default_factory=lambda: Recipe(""))
    outdir: str = "outputs/img-samples"
    iterations: int = 1
    batch: int = 1
    grid: bool = False
    variation_amount: float = 0.0
    variants: int = 0
    steps_after: int | None = None
    wrong_anyway: bool = False
    self_contained: bool = False
    typed: frozenset[str] = frozenset()


class SwitchError(ValueError):
    """A switch that cannot be understood."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line. It ends the program with status 2."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        values, extra = self.parse_known_args(args, namespace)
        if extra:
            self.error(self.about_extra_words(extra))
        return values

    def about_extra_words(self, words: list[str]) -> str:
        first = next((i for i, word in enumerate(words) if word.startswith("-")), None)
        if first is None:
            remedy = "put a prompt or a file name that has spaces in quotes"
            return f"{' '.join(words)!r} belongs to no switch: {remedy}"
        switch = words[first].partition("=")[0]
        if switch in BY_NAME and BY_NAME[switch].field in OF_IMAGE:
            return f"{switch} is for a picture to draw on: use minisd img2img"
        names = [name for action in self._actions for name in action.option_strings]
        hint = did_you_mean(switch, names)
        return f"there is no switch {' '.join(words[first:])}{hint}"

    def error(self, message: str) -> NoReturn:
        text = visible(message.removeprefix("argument "))
        self.exit(2, f"{self.prog}: {text} ({self.prog} -h lists the switches)\n")


class LineParser(Parser):
    """A parser that raises SwitchError instead."""

    def error(self, message: str) -> NoReturn:
        raise SwitchError(message.removeprefix("argument "))


# ---- adding switches to a parser -----------------------------------------------------------------


def add_recipe_switches(
    parser: argparse.ArgumentParser, image: bool = True, lists: bool = False
) -> None:
    """Add a switch for each field of the recipe.

    image False leaves out those that need an init image. With `lists`, -s, -S, -A and -f take
    several values with commas between them.
    """
    parser.epilog = EPILOG
    for name, (metavar, text) in HELP.items():
        if name in OF_IMAGE and not image:
            continue
        switch = BY_FIELD[name]
        if switch.convert is None:
            add_flag(parser, switch.names, name, text, FLAGS[name])
            continue
        is_list = lists and name in LISTS
        convert = value_type(switch.convert, is_list, getattr(Recipe(""), name))
        action = "append" if name == "options" else "store"
        parser.add_argument(*switch.names, dest=name, default=argparse.SUPPRESS, help=text,
                            metavar=metavar, type=convert, action=action)  # fmt: skip
    text = "draw even if the noise added is not what the network expects: warn instead of stopping"
    add_more(parser, "--wrong-anyway", "wrong_anyway", text)
    if image:
        text = "with -I: ask for as many steps as it takes to run N at this strength; overrides -s"
        count = between(1, 10_000, int)
        add_more(parser, "--steps-after --steps_after", "steps_after", text, count, "N")


def add_series_switches(parser: argparse.ArgumentParser, image: bool = True) -> None:
    """Add the switches that say how many pictures there are."""
    count, share = between(1, 10_000, int), between(0, 1)
    text = "how many pictures; each seed follows from the one before (1)"
    add_more(parser, "-n --iterations --n_iter --n_samples", "iterations", text, count, "N")
    text = "draw N of the -n pictures together: the same pictures, faster where there is room (1)"
    add_more(parser, "--batch --batch_size", "batch", text, count, "N")
    text = "0..1: how far to move the noise of each of the -n pictures from the seed's own (0)"
    add_more(parser, "-v --variation_amount", "variation_amount", text, share, "X")
    add_more(parser, "-g --grid", "grid", "also write all pictures as one")
    if image:
        text = (
            "store init image and mask inside each picture, without loss, so that it can be drawn "
            "again. Whoever gets the picture gets them too"
        )
        add_more(parser, "--self-contained --self_contained", "self_contained", text)
        text = "then redraw each result N times with the same prompt and strength (0)"
        add_more(parser, "--variants", "variants", text, between(0, 1000, int), "N")


def add_folder_switch(parser: argparse.ArgumentParser) -> None:
    add_more(parser, "-o --outdir", "outdir", f"folder for the pictures ({Request.outdir})", str,
             "FOLDER")  # fmt: skip


def add_model_switches(parser: argparse.ArgumentParser, torch_only: str = "") -> None:
    """Add the switches that choose the model: at the shell only.

    torch_only: why the command cannot use another engine.
    """
    add = parser.add_argument
    add("--model", "--ckpt", metavar="FILE",
        help="an SD 1.x checkpoint, by path or by name (minisd's own small weights)")  # fmt: skip
    add("--vae", metavar="FILE",
        help="take the autoencoder of this file, such as vae-ft-mse-840000-ema-pruned "
             "(default: the checkpoint's own)")  # fmt: skip
    add("--ema", action=argparse.BooleanOptionalAction,
        help="take the training averages (model_ema.*) for the UNet")  # fmt: skip
    add("--prediction", choices=["eps", "v"],
        help="what the UNet was trained to predict (what the file says, else eps)")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda, ... (cuda if available)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32",
        help="arithmetic of the UNet and the autoencoder (float32)")  # fmt: skip
    add("--engine", type=engine_type(torch_only), default="torch", metavar="NAME",
        help="torch (the default), or openvino: faster on a CPU. It converts a model at its first "
             "use, and compiles it for each size: worth it for large models")  # fmt: skip
    add("--exact", action="store_true",
        help="the same bits on every machine: instruction set, threads, batch, CPU or GPU make no "
        "difference (up to 4 times slower)")  # fmt: skip


def engine_type(torch_only: str) -> Callable[[str], str]:
    """The type of --engine, for argparse."""

    def read(name: str) -> str:
        if name not in ("torch", "openvino"):
            problem = f"there is no engine named {visible(name)!r}; choose from torch, openvino"
            raise argparse.ArgumentTypeError(problem)
        if name == "openvino" and torch_only:
            raise argparse.ArgumentTypeError(f"not openvino here: {torch_only}")
        return name

    return read


def add_more(
    parser: argparse.ArgumentParser,
    names: str,
    dest: str,
    text: str,
    convert: Callable[[str], Any] | None = None,
    metavar: str | None = None,
) -> None:
    """Add a switch that is not a field of the recipe; without `convert` it has no value."""
    if convert is None:
        add_flag(parser, names.split(), dest, text, True)
        return
    kind = value_type(convert, default=getattr(Request, dest, NO_DEFAULT))
    parser.add_argument(*names.split(), dest=dest, default=argparse.SUPPRESS, help=text,
                        metavar=metavar, type=kind)  # fmt: skip


def add_flag(
    parser: argparse.ArgumentParser, names: Sequence[str], dest: str, text: str, value: bool
) -> None:
    """Add a switch without a value, and its opposite."""
    keywords: dict[str, Any] = {"dest": dest, "default": argparse.SUPPRESS, "action": "store_const"}
    parser.add_argument(*names, help=text, const=value, **keywords)
    parser.add_argument(TAKE_BACK[dest], help=argparse.SUPPRESS, const=not value, **keywords)


def value_type(
    convert: Callable[[str], Any], comma_list: bool = False, default: Any = NO_DEFAULT
) -> Callable[[str], Any]:
    """A type for argparse, which shows the message of an ArgumentTypeError.

    It reads the word `default` as that value, and ~ as the home folder, in FILE.py:FUNCTION too.
    """

    def read_one(text: str) -> Any:
        if text == DEFAULT and default is not NO_DEFAULT:
            return default
        value = convert(text)
        return os.path.expanduser(value) if isinstance(value, str) else value

    def read(text: str) -> Any:
        try:
            return [read_one(part) for part in text.split(",")] if comma_list else read_one(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


# ---- what was typed ------------------------------------------------------------------------------


def request_from(values: Mapping[str, Any], base: Request | None = None) -> Request:
    """The base with the typed values in place of its own."""
    base = base or Request()
    typed = without_empty_prompt(values)
    own = {item.name for item in fields(Request)} & typed.keys()
    recipe = recipe_from(typed, base.recipe)
    names = base.typed | typed.keys()
    return replace(base, recipe=recipe, typed=names, **{name: typed[name] for name in own})


def recipe_from(
    values: Mapping[str, Any] | argparse.Namespace, base: Recipe | None = None
) -> Recipe:
    """The base recipe with the typed fields in place of its own."""
    values = vars(values) if isinstance(values, argparse.Namespace) else values
    values = without_empty_prompt(values)
    typed = {name: values[name] for name in RECIPE_FIELDS & values.keys()}
    if "prompt" in typed:
        check_text(typed["prompt"])
    base = base or Recipe("")
    if "options" in typed:
        merged = dict(base.options)
        for option in typed["options"]:
            merged = merged | option if option else {}  # `--set default` takes all of them back
        typed["options"] = merged
    return replace(base, **typed)


def check_text(prompt: str) -> None:
    """Raises ValueError for a prompt of bytes that are not text in the terminal's encoding."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        place = f"at character {error.start + 1}, {prompt[error.start]!r}"
        raise ValueError(f"the prompt is not text in UTF-8 {place}") from None


def without_empty_prompt(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were typed: argparse has a None for a prompt that was not."""
    return {name: v for name, v in values.items() if name != "prompt" or v is not None}


def refuse(args: argparse.Namespace) -> bool:
    """Whether a run stops when the noise added is not what the network expects."""
    return not getattr(args, "wrong_anyway", False)


def recipes_from(args: argparse.Namespace) -> list[Recipe]:
    """All combinations of the values of -s, -S, -A and -f that were typed with commas.

    If there is no seed, one is drawn for all.
    """
    values = dict(vars(args))
    lists = {name: values.pop(name) for name in LISTS if name in values}
    if lists.get("seed", [None]) == [None]:
        lists["seed"] = [random.SystemRandom().randrange(2**32 - 1)]
    recipes = combinations(recipe_from(values), lists)
    if values.get("steps_after"):
        return with_steps_run(recipes, values["steps_after"])
    return recipes


def line_parser() -> LineParser:
    parser = LineParser(prog="words", add_help=False)
    add_recipe_switches(parser)
    add_series_switches(parser)
    add_folder_switch(parser)
    return parser


def read_line(line: str, base: Request | None = None) -> Request:
    """A line of the prompt: words, then switches. Raises SwitchError, ValueError."""
    prompt, words = split_line(line)
    for word in words:
        if re.match(r"-o[^u]", word):
            raise SwitchError(f"{word!r}: write -o, a space, and the folder")
    values = vars(line_parser().parse_args(words))
    return request_from({"prompt": prompt, **values}, base)
