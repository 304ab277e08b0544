"""InvokeAI's settings in pictures: `sd-metadata` of 1 and 2, `invokeai_metadata` of 3 and later."""

import json
from collections.abc import Mapping
from typing import Any

from minisd.prompts.syntax import PromptError, escaped, parse
from minisd.recipes.dream import BY_FIELD, OutOfRange, read_value
from minisd.recipes.recipe import INIT_IMAGE

# The keys of InvokeAI's settings before 3.0, and the fields they are.
KEYS = {
    "steps": "steps",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "cfg_scale": "guidance",
    "sampler": "sampler",
    "strength_steps": "strength",
}
# The same from 3.0 on. Keys that say nothing about the pixels are not named.
KEYS_3 = {
    "steps": "steps",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "cfg_scale": "guidance",
    "scheduler": "sampler",
    "strength": "strength",
}
SILENT = {"positive_prompt", "negative_prompt", "app_version", "generation_mode", "init_image"}
SILENT |= {"clip_skip", "positive_style_prompt", "negative_style_prompt", "rand_device", "_canvas"}


def spoken_version(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """(dialect, era) of InvokeAI before 2.3, if the settings name such a version."""
    program, version = str(metadata.get("app_id")), str(metadata.get("app_version"))
    version = version.lstrip("v").partition("-")[0].partition("+")[0]
    if program == "lstein/stable-diffusion" and version == "1.15":
        return ("invokeai-2.0", "dev") if is_dev_img2img(metadata) else None
    if "invoke" not in program.lower():
        return None
    if version in ("2.0.0", "2.0.1", "2.0.2"):
        return "invokeai-2.0", version
    if version.startswith(("2.1", "2.2")):
        return "invokeai-2.2", "2.2.5" if version.startswith("2.2.5") else "2.1"
    return None


def is_dev_img2img(metadata: Mapping[str, Any]) -> bool:
    """Whether it is an img2img of the builds whose k-samplers the era dev speaks.

    They wrote ddim as the sampler of every img2img; the line Dream has the real one.
    """
    image = metadata.get("image") or {}
    return image.get("type") == "img2img" and image.get("sampler") == "ddim"


def fields_of_json(image: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields in InvokeAI's JSON, checked as a typed line is, and notes on what is left out."""
    parts = image["prompt"]
    weights = [float(part["weight"]) for part in parts]
    is_blend = len(parts) > 1 or weights != [1.0]
    texts = [str(part["prompt"]) for part in parts]
    if is_blend:
        texts = [f"{text}:{weight:g}" for text, weight in zip(texts, weights, strict=True)]
    fields: dict[str, Any] = {"prompt": " ".join(texts)}
    notes = read_keys(image, KEYS, fields)
    if image.get("type") == "img2img":
        fields["image"] = INIT_IMAGE
    if pairs := image.get("variations"):
        pairs = ",".join(f"{pair['seed']}:{pair['weight']}" for pair in pairs)
        fields["variations"] = read_value(BY_FIELD["variations"], pairs)
    return fields, notes


def read_keys(
    image: Mapping[str, Any], keys: Mapping[str, str], fields: dict[str, Any]
) -> list[str]:
    """Add to the fields what the keys give. Returns notes on values out of range."""
    notes = []
    for key, name in keys.items():
        if image.get(key) is not None:
            try:
                fields[name] = read_value(BY_FIELD[name], str(image[key]))
            except OutOfRange as error:
                notes.append(f"{key} was left out: {error}")
    return notes


def read_3(text: str) -> tuple[dict[str, Any], list[str]]:
    """The fields of `invokeai_metadata`, and notes. Raises ValueError.

    No dialect speaks these versions: they have diffusers' schedulers, and start at a noise level.
    """
    metadata = json.loads(text)
    if not isinstance(metadata, dict) or "positive_prompt" not in metadata:
        raise ValueError("its text invokeai_metadata has no positive_prompt")
    mode = str(metadata.get("generation_mode", "txt2img"))
    if mode not in ("txt2img", "img2img"):
        raise ValueError(f"it was made by {mode[:60]}, which minisd does not have")
    version = str(metadata.get("app_version", "3 or later"))[:60]
    notes = [f"made by InvokeAI {version}: no dialect speaks it, so the picture will differ"]
    if metadata.get("rand_device", "cpu") != "cpu":
        notes.append(f"its noise was drawn on {metadata['rand_device']}: minisd's is the CPU's")
    prompt = str(metadata["positive_prompt"])
    try:
        parse(prompt)
    except PromptError as error:
        notes.append(f"the prompt is taken as plain words: {error}")
        prompt = escaped(prompt)
    fields: dict[str, Any] = {"prompt": prompt, "clip_skip": 1 + int(metadata.get("clip_skip", 0))}
    fields["negative_prompt"] = str(metadata.get("negative_prompt") or "")
    notes += read_keys(metadata, KEYS_3, fields)
    sampler = str(fields.get("sampler", ""))
    if sampler.endswith("_k"):
        fields |= {"sampler": sampler.removesuffix("_k"), "schedule": "karras"}
    if mode == "img2img":
        fields["image"] = INIT_IMAGE
        name = metadata.get("init_image")
        notes.append(f"its init image is {str(name)[:100]} in InvokeAI's gallery" if name else "")
    used = {*KEYS_3, *SILENT}
    rest = {key: v for key, v in metadata.items() if key not in used and v not in (None, [], {})}
    if rest:
        named = ", ".join(f"{key} {value}" for key, value in rest.items())
        notes.append(f"these settings were left out: {named[:400]}")
    return fields, [note for note in notes if note]
