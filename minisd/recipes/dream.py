"""InvokeAI's line: a prompt and switches, as typed, and as stored in pictures under `Dream`.

    "a fire" -s 10 -S 42 -W 64 -H 64 -C 7.5 -I drawing.png -A k_lms -f 0.7

Names and ranges are those of InvokeAI's ldm/invoke/args.py; CompVis's names are aliases.
"""

import re
import shlex
from ast import literal_eval
from collections.abc import Callable
from typing import Any, NamedTuple

from minisd.recipes.recipe import BARE, CONSTANTS, Recipe


class OutOfRange(ValueError):
    """A number that is too large or too small for its switch."""


class Switch(NamedTuple):
    """A switch that is a field of the recipe."""

    field: str
    names: tuple[str, ...]
    convert: Callable[[str], Any] | None  # None: a switch without a value


def seed_weights(text: str) -> tuple[tuple[int, float], ...]:
    """`SEED:WEIGHT,SEED:WEIGHT` as pairs. Raises ValueError."""
    pairs = []
    for pair in text.split(","):
        seed, colon, weight = pair.partition(":")
        if not colon:
            raise ValueError(f"{pair!r} should be SEED:WEIGHT")
        pairs.append((between(0, 2**32 - 1, int)(seed), between(0, 1)(weight)))
    return tuple(pairs)


def guidance_value(text: str) -> float | str:
    """A number, or FILE.py:FUNCTION."""
    return text if ".py:" in text else between(0, 1000)(text)


def option_value(text: str) -> dict[str, Any]:
    """`OPTION=VALUE` as {option: value}; the value is a Python number, string or the like.

    Words, versions and dates need no quotation marks: noise_source=CPU, era=2.2.5.
    """
    option, _, value = text.partition("=")
    if option and BARE.fullmatch(value) and value not in CONSTANTS:
        return {option: value}
    try:
        return {option: literal_eval(value)}
    except (ValueError, SyntaxError):
        if option and re.fullmatch(r"[\d.-]+", value):  # a version, or a date
            return {option: value}
        raise ValueError(f"{text!r} should be OPTION=VALUE, such as eta=0.5") from None


def between(low: float, high: float, number: type = float) -> Callable[[str], Any]:
    """A function that reads a number in low..high. It raises ValueError with a plain message."""

    def convert(text: str) -> float:
        short = text if len(text) <= 40 else f"{text[:40]}..."
        try:
            value = number(text)
        except ValueError:
            noun = "a whole number" if number is int else "a number"
            raise ValueError(f"{short!r} is not {noun}") from None
        if not low <= value <= high:
            raise OutOfRange(f"{short} is not between {low} and {high}")
        return value

    return convert


SWITCHES = (
    Switch("steps", ("-s", "--steps", "--ddim_steps"), between(1, 10_000, int)),
    Switch("seed", ("-S", "--seed"), between(-999, 2**32 - 1, int)),
    Switch("width", ("-W", "--width", "--W"), between(1, 16384, int)),
    Switch("height", ("-H", "--height", "--H"), between(1, 16384, int)),
    Switch("guidance", ("-C", "--cfg_scale", "--scale", "--guidance"), guidance_value),
    Switch("guidance_rule", ("--guidance-rule", "--guidance_rule"), str),
    Switch("sampler", ("-A", "-m", "--sampler"), str),
    Switch("schedule", ("--schedule",), str),
    Switch("image", ("-I", "--init_img", "--init-img"), str),
    Switch("strength", ("-f", "--strength"), between(0, 1)),
    Switch("mask", ("-M", "--init_mask"), str),
    Switch("fit", ("-T", "-fit", "--fit"), None),
    Switch("paste", ("--no_paste",), None),
    Switch("variations", ("-V", "--with_variations"), seed_weights),
    Switch("normalize", ("-x", "--skip_normalize"), None),
    Switch("clip_skip", ("--clip-skip", "--clip_skip"), between(1, 40, int)),
    Switch("dialect", ("--dialect",), str),
    Switch("negative_prompt", ("--negative", "--negative_prompt"), str),
    Switch("options", ("--set",), option_value),
)
BY_FIELD = {switch.field: switch for switch in SWITCHES}
BY_NAME = {name: switch for switch in SWITCHES for name in switch.names}
FLAGS = {"fit": True, "paste": False, "normalize": False}  # the value that the switch sets

# Switches of InvokeAI's line that say how many pictures there are and where they go, with the
# number of their values. A picture's text must not decide that.
IGNORED = {
    **dict.fromkeys(("-n", "--iterations", "-o", "--outdir", "--variants", "-v"), 1),
    **dict.fromkeys(("--variation_amount", "--threshold", "--perlin"), 1),
    **dict.fromkeys(("-g", "--grid"), 0),
}
# Switches of InvokeAI's with one dash, which are not a letter and its value.
LONG_NAMES = ("-ft", "-cf", "-tm", "-save_orig", "-embiggen", "-embiggen_tiles")
# What shlex says of a line, in plain words.
SHELL_PROBLEMS = {
    "No closing quotation": "there is no closing quotation mark",
    "No escaped character": "nothing follows the last backslash",
}


def dream_line(recipe: Recipe) -> str:
    """The recipe as a line for the prompt."""
    prompt = recipe.full_prompt.replace("\\", "\\\\").replace('"', '\\"')
    return " ".join([f'"{prompt}"', *map(shlex.quote, recipe.switches())])


def read_dream(line: str) -> tuple[dict[str, Any], list[str]]:
    """The fields that a stored line gives, and notes on switches that minisd does not have.

    Raises ValueError for a line that cannot be read.
    """
    prompt, words = split_line(line)
    fields: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    notes = []
    while words:
        name, value = split_switch(words.pop(0))
        switch = BY_NAME.get(name)
        if switch is None and name not in IGNORED:
            text = name if value is None else f"{name} {value}"
            while words and not re.match(r"--?[a-zA-Z]", words[0]):
                text += f" {words.pop(0)}"
            notes.append(f"minisd has no switch {text[:80]}: it was left out")
            continue
        takes_value = IGNORED[name] == 1 if switch is None else switch.convert is not None
        if takes_value and value is None:
            if not words:
                raise ValueError(f"{name} has no value")
            value = words.pop(0)
        if switch is None:
            if name in ("--threshold", "--perlin") and not re.fullmatch(r"0(\.0*)?", value or "0"):
                notes.append(f"minisd has no switch {name} {value}: it was left out")
            continue
        try:
            field_value = read_value(switch, value)
        except OutOfRange as error:
            notes.append(f"{error}: it was left out")
            continue
        if switch.field == "options":
            field_value = {**fields.get("options", {}), **field_value}
        fields[switch.field] = field_value
    return fields, notes


def read_value(switch: Switch, text: str | None) -> Any:
    if switch.convert is None:
        return FLAGS[switch.field]
    try:
        return switch.convert(text or "")
    except ValueError as error:
        kind = OutOfRange if isinstance(error, OutOfRange) else ValueError
        raise kind(f"{switch.names[0]}: {error}") from None


def split_switch(word: str) -> tuple[str, str | None]:
    """`-s10`, `--steps=10` and `-s` as (name, value or None)."""
    if not word.startswith("-"):
        raise ValueError(f"{word[:40]!r} is not a switch")
    if word.startswith("--") or word in BY_NAME or word in IGNORED or word in LONG_NAMES:
        name, equals, value = word.partition("=")
        return name, value if equals else None
    return word[:2], word[2:].removeprefix("=") or None


def split_line(line: str) -> tuple[str | None, list[str]]:
    """The prompt and the words after it, as InvokeAI 2.1 and later split a line.

    The prompt ends before the first space that is followed by `-` or `--` and a letter. In a line
    that begins with a quotation mark, it ends with the closing one. Raises ValueError.
    """
    line = line.strip()
    if line.startswith("-"):
        return None, shell_words(line)
    if line.startswith('"'):
        prompt, *words = shell_words(line)
        if words and not words[0].startswith("-"):
            remedy = "put the whole prompt in quotation marks, or none of it"
            raise ValueError(f"{words[0][:40]!r} follows the closing quotation mark: {remedy}")
        return prompt, words
    match = re.match(r"(.+?)\s(--?[a-zA-Z].*)$", line, re.S)
    return (match[1].strip(), shell_words(match[2])) if match else (line, [])


def shell_words(text: str) -> list[str]:
    """The words of a text, as a shell splits it. Raises ValueError."""
    try:
        return shlex.split(without_comment(text))
    except ValueError as error:
        problem = SHELL_PROBLEMS.get(str(error), str(error))
        raise ValueError(f"{problem}: {text[:100]}") from None


def without_comment(text: str) -> str:
    """The text up to a # that starts a word. (shlex would end the text at any #, as in out#2.)"""
    quote, backslash, word_starts = "", False, True
    for i, char in enumerate(text):
        if char == "#" and word_starts:
            return text[:i]
        word_starts = char.isspace() and not quote and not backslash
        if backslash:
            backslash = False
        elif char == "\\" and quote != "'":
            backslash = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
    return text
