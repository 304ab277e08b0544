"""AUTOMATIC1111's `parameters`: the prompt, the negative prompt, and a line of settings.

    a (big fire:1.3)
    Negative prompt: smoke
    Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 512x512, ...

AUTOMATIC1111: modules/processing.py, create_infotext, and modules/infotext_utils.py. Forge,
SD.Next, stable-diffusion.cpp and others write it too.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from minisd.prompts.syntax import escaped, parse
from minisd.recipes.dream import BY_FIELD, OutOfRange, read_value
from minisd.recipes.recipe import INIT_IMAGE, Recipe
from minisd.schedule import SCHEDULES

FIELDS = {"Steps": "steps", "CFG scale": "guidance", "Seed": "seed", "Clip skip": "clip_skip"}
OWN_PROMPT = "minisd prompt"  # the key of a prompt that has no form in AUTOMATIC1111's syntax
PAIR = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
EXTRA_NETWORK = re.compile(r"\s*<\w+:[^<>]+>")
PROGRAM_KEYS = ("App", "Version")


# ---- writing -------------------------------------------------------------------------------------


def write(prompt: str, settings: Mapping[str, Any]) -> str:
    """The text of a prompt and its settings; a setting of None is left out.

    Weights are written as (words:1.3). If the prompt does not read back as it is, such as a blend,
    the prompt is plain words, and the settings hold it in minisd's syntax too.
    """
    lines = prompt_lines(prompt)
    if Recipe(**read_prompt("\n".join(lines), ours=True)).full_prompt != prompt:
        settings = {**settings, OWN_PROMPT: prompt}
    pairs = {key: value for key, value in settings.items() if value is not None}
    special = re.compile(r'[,:\n"]|^\s|\s$')
    quoted = {k: json.dumps(v) if special.search(f"{v}") else v for k, v in pairs.items()}
    return "\n".join([*lines, ", ".join(f"{key}: {value}" for key, value in quoted.items())])


def prompt_lines(prompt: str) -> list[str]:
    """A prompt of minisd in AUTOMATIC1111's syntax: a text, and a negative prompt if it has one."""
    parts, negative = parse(prompt)
    words = []
    for fragment in (fragment for part in parts for fragment in part.fragments):
        weighted = fragment.weight != 1 and len(parts) == 1
        text = with_backslashes(fragment.text)
        words.append(f"({text}:{fragment.weight:g})" if weighted else text)
    text = re.sub(" {2,}", " ", "".join(words)).strip()
    return [text, f"Negative prompt: {with_backslashes(negative)}"] if negative else [text]


def with_backslashes(text: str) -> str:
    return re.sub(r"([()\[\]\\])", r"\\\1", text)


# ---- reading -------------------------------------------------------------------------------------


def read(text: str) -> tuple[dict[str, Any], list[str]]:
    """The recipe's fields in a text, and notes on what they leave out. Raises ValueError."""
    rows = text.strip().split("\n")
    last = settings_row(rows)
    values = {key: unquoted(value) for key, value in PAIR.findall(rows[last])}
    body = "\n".join(rows[:last])
    ours = values.get("Version", "").startswith("minisd")
    if ours:
        notes = []
    else:
        notes = [f"made by {maker(values)}: minisd's picture will differ", *notes_on_prompt(body)]
    notes += [f"{row.strip()[:200]!r} was left out" for row in rows[last + 1 :]]
    prompts = {"prompt": values[OWN_PROMPT]} if OWN_PROMPT in values else read_prompt(body, ours)
    fields, more_notes = read_settings(values, ours)
    return {**prompts, **fields}, notes + more_notes


def settings_row(rows: list[str]) -> int:
    """The index of the line of settings. A template of the prompt may follow it."""
    for i in reversed(range(len(rows))):
        if len(PAIR.findall(rows[i])) >= 3 and (i == len(rows) - 1 or "Steps: " in rows[i]):
            return i
    raise ValueError("its text 'parameters' has no line of settings")


def unquoted(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def read_prompt(text: str, ours: bool) -> dict[str, Any]:
    """The prompt and the negative prompt. Other programs' weights become plain words."""
    positive, _, negative = f"\n{text}".partition("\nNegative prompt:")
    positive, negative = positive.strip(), negative.strip()
    if ours:
        positive = re.sub(r"(?<!\\)\(((?:\\.|[^()\\])*):([\d.]+)\)", r"(\1)\2", positive)
        negative = re.sub(r"\\([()\[\]\\])", r"\1", negative)
    else:
        positive = escaped(EXTRA_NETWORK.sub("", positive))
        negative = EXTRA_NETWORK.sub("", negative)
    return {"prompt": positive, "negative_prompt": negative}


def read_settings(values: Mapping[str, str], ours: bool) -> tuple[dict[str, Any], list[str]]:
    """The fields in the line of settings, and notes on the rest of it."""
    left, fields, notes = dict(values), {}, []

    def read_field(name: str, key: str, text: str) -> None:
        try:
            fields[name] = read_value(BY_FIELD[name], text)
        except OutOfRange as error:
            notes.append(f"{key} was left out: {error}")

    seed = left.get("Seed", "")
    if seed.isdecimal() and int(seed) >= 2**32:
        left["Seed"] = f"{int(seed) % 2**32}"
        notes.append(f"the seed {seed[:40]} has over 32 bits: on a CPU, {left['Seed']} is the same")
    for key, name in FIELDS.items():
        if key in left:
            read_field(name, key, left.pop(key))
    sampler, schedule = left.pop("Sampler", "LMS"), left.pop("Schedule type", "Automatic")
    for name in ("Karras", "Exponential"):  # older versions wrote it behind the sampler
        if sampler.endswith(f" {name}"):
            sampler, schedule = sampler.removesuffix(f" {name}"), name
    fields["sampler"] = sampler
    if schedule != "Automatic":
        name = schedule.lower().replace(" ", "_")
        fields["schedule"] = f"{name}_a1111" if f"{name}_a1111" in SCHEDULES else name
    if match := re.fullmatch(r"(\d+)x(\d+)", left.get("Size", "")):
        del left["Size"]
        read_field("width", "Size", match[1])
        read_field("height", "Size", match[2])
    weight = left.get("Variation seed strength", "")
    if left.get("Variation seed", "").isdecimal() and weight:
        read_field("variations", "Variation seed", f"{left.pop('Variation seed')}:{weight}")
        del left["Variation seed strength"]
    # With a second pass ("Hires"), the strength is that pass's. Without an init image it is 0.
    if "Denoising strength" in left and not any(key.startswith("Hires") for key in left):
        read_field("strength", "Denoising strength", left.pop("Denoising strength"))
        if ours or fields.get("strength"):
            fields["image"] = INIT_IMAGE
            if not ours:
                notes.append("AUTOMATIC1111 runs one step more at the same strength")
    rest = ", ".join(f"{key} {value}" for key, value in left.items() if key not in PROGRAM_KEYS)
    if rest and not ours:
        notes.append(f"these settings were left out: {rest[:400]}")
    return fields, notes


def maker(values: Mapping[str, str]) -> str:
    """The name of the program that wrote the settings, as far as they say it."""
    name = values.get("App") or values.get("Version", "")
    if re.match(r"f\d", name):
        return "Forge"
    return "AUTOMATIC1111's program" if re.match(r"v?\d|$", name) else name[:60]


def notes_on_prompt(text: str) -> list[str]:
    """What other programs would not read as plain words."""
    notes = [f"{tag.strip()[:80]} was left out" for tag in EXTRA_NETWORK.findall(text)]
    syntax = []
    if re.search(r"[()\[\]]", text):
        syntax.append("weights such as (words:1.3), and [words]")
    syntax += re.findall(r"\b(AND|BREAK)\b", text)[:1]
    if syntax:
        notes.append(f"{' and '.join(syntax)} are taken as plain words here")
    return notes
