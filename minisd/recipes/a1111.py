"""AUTOMATIC1111's `parameters`: the prompt, the negative prompt, and a line of settings.

    a (big fire:1.3)
    Negative prompt: smoke
    Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 512x512, ...

AUTOMATIC1111: modules/processing.py, create_infotext, and modules/infotext_utils.py. Forge,
SD.Next, stable-diffusion.cpp and others write it too. Text of other programs becomes a recipe in
the dialect a1111; minisd writes its own with its version.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from minisd.prompts.syntax import escaped, parse
from minisd.recipes.a1111_names import (
    HEUN,
    KEYS,
    OTHER_NAMES,
    SAMPLERS,
    SCHEDULES,
    VP,
    automatic_schedule,
    schedule_named,
)
from minisd.recipes.dream import BY_FIELD, OutOfRange, read_value
from minisd.recipes.recipe import INIT_IMAGE, Recipe, name_of

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
    return "\n".join([*lines, settings_line(settings)])


def settings_line(settings: Mapping[str, Any]) -> str:
    pairs = {key: value for key, value in settings.items() if value is not None}
    special = re.compile(r'[,:\n"]|^\s|\s$')
    quoted = {k: json.dumps(v) if special.search(f"{v}") else v for k, v in pairs.items()}
    return ", ".join(f"{key}: {value}" for key, value in quoted.items())


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


def infotext(recipe: Recipe, size: tuple[int, int], more: Mapping[str, Any]) -> str:
    """The text of a recipe in the dialect a1111, as the program itself writes it.

    size: width and height in pixels; more: keys to add, such as Model. What the program does not
    write into its text is not in this one either, such as exact_steps.
    """
    options, sampler = recipe.options, name_of(recipe.sampler)
    names = {own: name for name, own in SAMPLERS.items()} | {"dpmpp_2m": "DPM++ 2M"}
    name = HEUN if options.get("solver") == "heun" else names[sampler]
    schedule = name_of(recipe.schedule or ("uniform" if sampler not in VP else ""))
    schedule = OTHER_NAMES.get(schedule, schedule).removesuffix("_a1111")
    if not schedule or schedule == automatic_schedule(sampler) == "uniform":
        kind = "Automatic"
    else:
        kind = next(k for k in SCHEDULES if k.lower().replace(" ", "_") == schedule)
    settings: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": name,
        "Schedule type": kind,
        "CFG scale": name_of(recipe.guidance),
        "Seed": recipe.seed,
        "Size": f"{size[0]}x{size[1]}",
    }
    for key in ("Model hash", "Model"):
        settings[key] = more.get(key)
    for other, weight in recipe.variations[:1]:
        settings |= {"Variation seed": other, "Variation seed strength": name_of(weight)}
    settings["Denoising strength"] = name_of(recipe.strength) if recipe.image else None
    settings["Clip skip"] = recipe.clip_skip if recipe.clip_skip > 1 else None
    for key, (option, _) in KEYS.items():
        if option in options and key != ("Eta" if sampler == "ddim" else "Eta DDIM"):
            settings[key] = name_of(options[option])
    settings |= {key: value for key, value in more.items() if key not in settings}
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {recipe.negative_prompt}")
    return "\n".join([*lines, settings_line(settings)])


# ---- reading -------------------------------------------------------------------------------------


def read(text: str) -> tuple[dict[str, Any], list[str]]:
    """The recipe's fields in a text, and notes on what they leave out. Raises ValueError."""
    rows = text.strip().split("\n")
    last = settings_row(rows)
    values = {key: unquoted(value) for key, value in PAIR.findall(rows[last])}
    body = "\n".join(rows[:last])
    ours = values.get("Version", "").startswith("minisd")
    notes = [f"{row.strip()[:200]!r} was left out" for row in rows[last + 1 :]]
    spoken = not ours and sampler_and_type(values)[0] in {*SAMPLERS, HEUN}
    if spoken:
        fields, more_notes = read_spoken(values, body)
        return fields, [*more_notes, *notes]
    if not ours:
        made = f"made by {maker(values)}: minisd's picture will differ"
        notes = [made, *notes_on_prompt(body), *notes]
    prompts = {"prompt": values[OWN_PROMPT]} if OWN_PROMPT in values else read_prompt(body, ours)
    fields, left, more_notes = read_settings(values, ours)
    sampler, kind = sampler_and_type(values)
    fields["sampler"] = sampler
    if kind != "Automatic":
        fields["schedule"] = kind.lower().replace(" ", "_")
    return {**prompts, **fields}, notes + more_notes + ([] if ours else left_out(left))


def settings_row(rows: list[str]) -> int:
    """The index of the line of settings. A template of the prompt may follow it."""
    for i in reversed(range(len(rows))):
        if len(PAIR.findall(rows[i])) >= 3 and (i == len(rows) - 1 or "Steps: " in rows[i]):
            return i
    raise ValueError("its text 'parameters' has no line of settings")


def unquoted(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value


def split_prompts(text: str) -> tuple[str, str]:
    positive, _, negative = f"\n{text}".partition("\nNegative prompt:")
    return positive.strip(), negative.strip()


def read_prompt(text: str, ours: bool) -> dict[str, Any]:
    """The prompt and the negative prompt. Other programs' weights become plain words."""
    positive, negative = split_prompts(text)
    if ours:
        positive = re.sub(r"(?<!\\)\(((?:\\.|[^()\\])*):([\d.]+)\)", r"(\1)\2", positive)
        negative = re.sub(r"\\([()\[\]\\])", r"\1", negative)
    else:
        positive = escaped(EXTRA_NETWORK.sub("", positive))
        negative = EXTRA_NETWORK.sub("", negative)
    return {"prompt": positive, "negative_prompt": negative}


def sampler_and_type(values: Mapping[str, str]) -> tuple[str, str]:
    """The sampler's name, and its schedule type. Before 1.9 the name ended with the type."""
    sampler, kind = values.get("Sampler", "LMS"), values.get("Schedule type", "Automatic")
    if sampler in (*SAMPLERS, HEUN):
        return sampler, kind
    for name in SCHEDULES:
        if sampler.endswith(f" {name}"):
            return sampler.removesuffix(f" {name}"), name
    by_own_name = {own: name for name, own in SAMPLERS.items()}
    for own in (sampler, f"k_{sampler}"):  # stable-diffusion.cpp's names
        sampler = by_own_name.get(own, sampler)
    return sampler, kind


def read_settings(
    values: Mapping[str, str], ours: bool
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The fields in the line of settings, the other keys, and notes."""
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
    for key in ("Sampler", "Schedule type"):
        left.pop(key, None)
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
    return fields, left, notes


def read_spoken(values: Mapping[str, str], body: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of a recipe in the dialect a1111, and notes."""
    fields, left, notes = read_settings(values, ours=False)
    positive, negative = split_prompts(body)
    tags = EXTRA_NETWORK.findall(positive) + EXTRA_NETWORK.findall(negative)
    notes = [*(f"{tag.strip()[:80]} was left out" for tag in tags), *notes]
    positive, negative = EXTRA_NETWORK.sub("", positive), EXTRA_NETWORK.sub("", negative)
    name, kind = sampler_and_type(values)
    sampler = SAMPLERS.get(name, "dpmpp_2m_sde")
    options: dict[str, Any] = {"solver": "heun"} if name == HEUN else {}
    for key, (option, read_option) in KEYS.items():
        if key not in left or key == ("Eta" if sampler == "ddim" else "Eta DDIM"):
            continue
        try:
            options[option] = read_option(left[key])
        except (ValueError, KeyError, OverflowError):
            continue  # it stays among what is left out
        del left[key]
    if kind not in (*SCHEDULES, "Automatic"):
        plain = kind.lower().replace(" ", "_")[:60]
        notes.append(f"the schedule {plain} is not here: the sampler's own is used")
        kind = "Automatic"
    version = version_of(values)
    if kind == "Automatic" and "Schedule type" not in values and sampler not in VP:
        own = automatic_schedule(sampler)
        kind = "Uniform" if own != "uniform" else kind
        if kind == "Uniform":
            notes.append(f"no schedule type: uniform, as before 1.9 (later {own} is automatic)")
    if version and version < (1, 6):
        if "[" in positive + negative:
            options.setdefault("old_editing", True)
        if sampler in ("ddim", "plms"):
            options |= {"era": "1.5", "pad_conds_v0": True}
    if version and version < (1, 7):
        options.setdefault("downcast", True)
    program = maker(values)
    made = f"made by {A1111}: its dialect a1111 is spoken"
    if program != A1111:
        made = f"made by {program}: read as if by {A1111}, so the picture may differ"
    notes = [made, *notes] if not program.startswith("minisd") else notes
    fields |= {
        "prompt": positive,
        "negative_prompt": negative,
        "sampler": sampler,
        "schedule": schedule_named(kind, sampler),
        "dialect": "a1111",
        "options": options,
    }
    return fields, [*notes, *left_out(left), *unrecorded(fields)]


def left_out(left: Mapping[str, str]) -> list[str]:
    rest = ", ".join(f"{key} {value}" for key, value in left.items() if key not in PROGRAM_KEYS)
    return [f"these settings were left out: {rest[:400]}"] if rest else []


def unrecorded(fields: Mapping[str, Any]) -> list[str]:
    """What the program does not write into its text, and what is taken here."""
    taken = ["quantize=False"]
    if fields.get("image"):
        taken.append("exact_steps=False")
    if fields["options"].get("noise_source", "GPU") == "GPU":
        taken.append("card=RTX 3090 (for more than 16,384 numbers)")
    return [f"the text does not say these, so --set changes them: {', '.join(taken)}"]


A1111 = "AUTOMATIC1111's program"


def version_of(values: Mapping[str, str]) -> tuple[int, ...]:
    """(1, 10, 1); empty if the text has none. Forge's has AUTOMATIC1111's behind its own."""
    match = re.search(r"(?:^|v)(\d+)\.(\d+)(?:\.(\d+))?", values.get("Version", ""))
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def maker(values: Mapping[str, str]) -> str:
    """The name of the program that wrote the settings, as far as they say it."""
    name = values.get("App") or values.get("Version", "")
    if re.match(r"f\d", name):
        return "Forge"
    return A1111 if re.match(r"v?\d|$", name) else name[:60]


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
