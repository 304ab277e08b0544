"""Recipes in pictures: InvokeAI's `Dream` and `sd-metadata`, AUTOMATIC1111's `parameters`.

They are written so that these programs can read them. Text in a picture comes from strangers: its
size is limited, its values are checked, and nothing in it is run or decides where files go.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from minisd.prompts.syntax import escaped, parse
from minisd.recipes.dream import BY_FIELD, dream_line, read_dream, read_value
from minisd.recipes.recipe import Recipe, name_of
from minisd.samplers import FACTS
from minisd.schedule import SCHEDULES

MAX_TEXT = 1 << 20  # characters of a text chunk
# The keys of other programs' settings, and the fields they are.
A1111_KEYS = {
    "Steps": "steps",
    "CFG scale": "guidance",
    "Seed": "seed",
    "Denoising strength": "strength",
}
INVOKEAI_KEYS = {
    "steps": "steps",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "cfg_scale": "guidance",
    "sampler": "sampler",
    "strength_steps": "strength",
}


class Model(NamedTuple):
    """What a picture says about the model that drew it."""

    name: str
    sha256: str
    dtype: str
    version: str  # of minisd


# ---- writing -------------------------------------------------------------------------------------


def texts(
    recipe: Recipe, size: tuple[int, int], model: Model, init_hash: str | None = None
) -> dict[str, str]:
    """The text chunks of a picture, by name.

    size: width and height in pixels; init_hash: SHA-256 of the init image's file
    """
    return {
        "Dream": dream_line(recipe),
        "sd-metadata": json.dumps(invokeai_metadata(recipe, size, model, init_hash)),
        "parameters": a1111_parameters(recipe, size, model, init_hash),
    }


def invokeai_metadata(
    recipe: Recipe, size: tuple[int, int], model: Model, init_hash: str | None
) -> dict[str, Any]:
    image: dict[str, Any] = {
        "prompt": [{"prompt": recipe.full_prompt, "weight": 1.0}],
        "steps": recipe.steps,
        "cfg_scale": written(recipe.guidance),
        "threshold": 0,
        "perlin": 0,
        "width": size[0],
        "height": size[1],
        "seed": recipe.seed,
        "sampler": name_of(recipe.sampler),
        "variations": [{"seed": seed, "weight": w} for seed, w in recipe.variations],
        "type": "img2img" if recipe.image else "txt2img",
        "postprocessing": None,
    }
    if recipe.image:
        image |= {"strength_steps": recipe.strength, "orig_hash": init_hash}
    return {
        "model": "stable diffusion",
        "model_id": model.name,
        "model_hash": model.sha256,
        "app_id": "minisd",
        "app_version": model.version,
        "dtype": model.dtype,
        "image": image,
    }


def a1111_parameters(
    recipe: Recipe, size: tuple[int, int], model: Model, init_hash: str | None
) -> str:
    sampler = name_of(recipe.sampler)
    pairs = {
        "Steps": recipe.steps,
        "Sampler": FACTS[sampler].a1111 if sampler in FACTS else sampler,
        "Schedule type": name_of(recipe.schedule).capitalize() if recipe.schedule else None,
        "CFG scale": written(recipe.guidance),
        "Seed": recipe.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model.sha256[:10],
        "Model": model.name,
        "Denoising strength": recipe.strength if recipe.image else None,
        "Init image hash": init_hash[:10] if init_hash else None,
        "RNG": "CPU",
        "Version": f"minisd {model.version}",
    }
    quoted = {k: json.dumps(v) if re.search(r"[,:\n]", str(v)) else v for k, v in pairs.items()}
    words = parse(recipe.full_prompt).negative
    lines = [re.sub(r"\s*\[.*?\]", "", recipe.prompt)]
    lines += [f"Negative prompt: {words}"] if words else []
    lines.append(", ".join(f"{key}: {value}" for key, value in quoted.items() if value is not None))
    return "\n".join(lines)


def written(guidance: Any) -> float | str:
    return guidance if isinstance(guidance, int | float) else name_of(guidance)


# ---- reading -------------------------------------------------------------------------------------


@dataclass
class Reading:
    """What a text gives: fields of a Recipe, notes for the reader, and the init image's SHA-256."""

    fields: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    init_hash: str | None = None


def read_recipe(source: str | Path) -> Recipe:
    """The recipe in a picture's file, or in a text that was copied from one.

    The recipe's `notes` say what could not be carried over. An init image that is not where the
    text says is looked for beside the picture. Raises ValueError if there are no settings, OSError
    for a file that cannot be read.
    """
    if isinstance(source, str) and is_metadata(source):
        return to_recipe(chunks_of_text(source), "the text", Path())
    return to_recipe(read_chunks(Path(source)), str(source), Path(source).parent)


def is_metadata(text: str) -> bool:
    """Whether a string is metadata, and not the path of a picture."""
    if "\n" in text or text.lstrip().startswith(("{", '"')):
        return True
    return bool(re.search(r"\s-[a-zA-Z]", text)) and not Path(text).exists()


def chunks_of_text(text: str) -> dict[str, str]:
    if re.search(r"^Steps: \d", text, re.M):
        return {"parameters": text}
    return {"sd-metadata" if text.lstrip().startswith("{") else "Dream": text}


def read_chunks(path: Path) -> dict[str, str]:
    """The text chunks of a picture's file, by name."""
    try:
        with Image.open(path) as image:
            chunks = getattr(image, "text", None) or image.info
            return {str(k): str(v)[:MAX_TEXT] for k, v in chunks.items() if isinstance(v, str)}
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the text in {path} can't be read: {error}") from None
    except OSError as error:
        if error.filename:
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from None


def to_recipe(chunks: Mapping[str, str], source: str, folder: Path) -> Recipe:
    try:
        if "Dream" in chunks or "sd-metadata" in chunks:
            reading = read_invokeai(chunks)
        elif "parameters" in chunks:
            reading = read_a1111(chunks["parameters"])
        else:
            raise ValueError("there is no text named Dream, sd-metadata or parameters")
        for name in ("sampler", "schedule", "guidance"):
            if ".py:" in str(reading.fields.get(name)):  # a picture must not choose a file to run
                own = reading.fields.pop(name)[:100]
                reading.notes.append(f"the {name} was {own}, which is not run: choose it yourself")
        if reading.fields.get("image"):
            find_init_image(reading, folder)
        return Recipe(**reading.fields, notes=tuple(reading.notes))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        problem = f"{source} has no settings that can be read: {error}"
        raise ValueError(problem[:400]) from None


def read_invokeai(chunks: Mapping[str, str]) -> Reading:
    stored = json.loads(chunks.get("sd-metadata", "{}"))
    image = stored.get("image") or (stored.get("images") or [{}])[0]
    if "Dream" in chunks:
        reading = Reading(*read_dream(chunks["Dream"]))
    else:
        reading = Reading(fields_of_json(image))
    fields, notes = reading.fields, reading.notes
    program = stored.get("app_id")
    if image.get("type") == "img2img" and image.get("sampler") == "ddim":
        if fields.get("sampler") != "ddim":
            notes.append(
                f"sd-metadata says that the sampler is ddim, Dream says {fields.get('sampler')}, "
                "which is used: InvokeAI wrote ddim for every img2img"
            )
        elif program != "minisd":
            notes.append("the sampler may not be ddim: InvokeAI wrote that for every img2img")
    if fields.get("seed") is None and "seed" in image:
        fields["seed"] = int(image["seed"])
    if program and program != "minisd":
        maker = f"{str(program)[:60]} {str(stored.get('app_version', ''))[:20]}"
        notes.append(
            f"made by {maker} with {str(stored.get('model_id'))[:60]}: minisd's picture will "
            "differ, because its schedule does"
        )
    if image.get("orig_hash"):
        reading.init_hash = str(image["orig_hash"])
    return reading


def fields_of_json(image: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in InvokeAI's JSON, checked as a typed line is."""
    parts = image["prompt"]
    weights = [float(part["weight"]) for part in parts]
    is_blend = len(parts) > 1 or weights != [1.0]
    texts = [str(part["prompt"]) for part in parts]
    if is_blend:
        texts = [f"{text}:{weight:g}" for text, weight in zip(texts, weights, strict=True)]
    fields: dict[str, Any] = {"prompt": " ".join(texts)}
    for key, name in INVOKEAI_KEYS.items():
        if image.get(key) is not None:
            fields[name] = read_value(BY_FIELD[name], str(image[key]))
    if pairs := image.get("variations"):
        pairs = ",".join(f"{pair['seed']}:{pair['weight']}" for pair in pairs)
        fields["variations"] = read_value(BY_FIELD["variations"], pairs)
    return fields


def read_a1111(text: str) -> Reading:
    *body, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    if len(pairs) < 3:
        raise ValueError("its text 'parameters' does not end in a line of settings")
    values = {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}
    ours = str(values.get("Version", "")).startswith("minisd")
    notes = [] if ours else ["made by AUTOMATIC1111's program: minisd's picture will differ"]
    start = next((i for i, row in enumerate(body) if row.startswith("Negative prompt:")), len(body))
    positive = "\n".join(body[:start]).strip()
    negative = "\n".join(body[start:]).removeprefix("Negative prompt:").strip()
    if not ours and re.search(r"[()\[\]]", positive + negative):
        notes.append("weights such as (words:1.3) and [words] are taken as plain words here")
    fields: dict[str, Any] = {
        "prompt": positive if ours else escaped(positive),
        "negative_prompt": negative,
    }
    sampler, schedule = values.get("Sampler", "LMS"), values.get("Schedule type", "")
    if sampler.endswith(" Karras"):
        sampler, schedule = sampler.removesuffix(" Karras"), "Karras"
    names = {facts.a1111: name for name, facts in reversed(FACTS.items())}
    fields["sampler"] = names.get(sampler, sampler)
    if schedule.lower() in SCHEDULES:
        fields["schedule"] = schedule.lower()
    for key, name in A1111_KEYS.items():
        if key in values:
            fields[name] = read_value(BY_FIELD[name], values[key])
    if match := re.fullmatch(r"(\d+)x(\d+)", values.get("Size", "")):
        fields |= {"width": int(match[1]), "height": int(match[2])}
    if "Denoising strength" in values:
        notes.append("the text does not name the init image: give it with -I")
        if not ours:
            notes.append("AUTOMATIC1111 runs one step more at the same strength")
    return Reading(fields, notes)


def find_init_image(reading: Reading, folder: Path) -> None:
    """Point the field `image` at the file that the picture was drawn on, or add a note."""
    given = Path(reading.fields["image"])
    places = [given, folder / given.name, Path(given.name)]
    files = [place for place in places if place.is_file()]
    wanted = reading.init_hash
    if not files:
        its_hash = f", SHA-256 {wanted}" if wanted else ""
        reading.notes.append(f"its init image {given} is not here{its_hash}: give it with -I")
        return
    same = [file for file in files if wanted is None or sha256(file) == wanted]
    reading.fields["image"] = str((same or files)[0])
    if not same:
        reading.notes.append(
            f"{files[0]} is not the picture that it was drawn on: its SHA-256 differs"
        )


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
