"""The settings in a PNG: InvokeAI's `Dream` and `sd-metadata`, AUTOMATIC1111's `parameters`.

Written so that any of these programs can read them; read as text from strangers: bounded, checked
by the same parser as a typed line, and never run.
"""

import argparse
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from minisd.cli.switches import read_line
from minisd.prompts import SPECIAL, parse

# AUTOMATIC1111's names of the samplers.
A1111 = {
    "k_lms": "LMS",
    "ddim": "DDIM",
    "plms": "PLMS",
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_a": "DPM2 a",
    "k_dpmpp_2": "DPM++ 2M",
    "k_dpmpp_2_a": "DPM++ 2S a",
}
MAX_TEXT = 1 << 20  # characters of a text chunk


class Recalled(NamedTuple):
    """Settings read from a picture, and what is to be said of them."""

    args: argparse.Namespace
    notes: list[str]
    init_hash: str | None  # SHA-256 of the picture that it was drawn on


# ---- writing -----------------------------------------------------------------------------------


def dream(args: argparse.Namespace) -> str:
    """The settings as a line for the prompt, in InvokeAI's order."""
    prompt = args.prompt.replace("\\", "\\\\").replace('"', '\\"')
    words = [f'"{prompt}"', f"-s {args.steps}"]
    for switch, value in (("-S", args.seed), ("-W", args.width), ("-H", args.height)):
        words += [f"{switch} {value}"] if value is not None else []
    words.append(f"-C {args.cfg_scale!r}")
    if args.init_img:
        words.append(f"-I {shlex.quote(args.init_img)}")
    words.append(f"-A {shlex.quote(args.sampler)}")
    words += ["--fit"] if args.init_img and args.fit else []
    words += [f"-M {shlex.quote(args.init_mask)}"] if args.init_img and args.init_mask else []
    words += [f"-f {args.strength!r}"] if args.init_img else []
    words += ["--no_paste"] if args.init_img and args.no_paste else []
    words += [f"--schedule {shlex.quote(args.schedule)}"] if args.schedule else []
    words += ["-x"] if args.skip_normalize else []
    if args.with_variations:
        words.append("-V " + ",".join(f"{seed}:{w!r}" for seed, w in args.with_variations))
    return " ".join(words)


def texts(
    args: argparse.Namespace, size: tuple[int, int], model: dict[str, str], init_hash: str | None
) -> dict[str, str]:
    """The text chunks of a picture. `model` has name, hash (SHA-256), dtype and version."""
    parsed = parse(args.prompt)
    image: dict[str, Any] = {
        "prompt": [{"prompt": args.prompt, "weight": 1.0}],
        "steps": args.steps,
        "cfg_scale": args.cfg_scale,
        "threshold": 0,
        "perlin": 0,
        "width": size[0],
        "height": size[1],
        "seed": args.seed,
        "sampler": args.sampler,
        "variations": [{"seed": seed, "weight": w} for seed, w in args.with_variations],
        "type": "img2img" if args.init_img else "txt2img",
        "postprocessing": None,
    }
    if args.init_img:
        image |= {"strength_steps": args.strength, "orig_hash": init_hash}
    invoke = {
        "model": "stable diffusion",
        "model_id": model["name"],
        "model_hash": model["hash"],
        "app_id": "minisd",
        "app_version": model["version"],
        "dtype": model["dtype"],
        "image": image,
    }
    parameters = [
        ("Steps", args.steps),
        ("Sampler", A1111.get(args.sampler, args.sampler)),
        ("Schedule type", args.schedule.capitalize() if args.schedule else None),
        ("CFG scale", args.cfg_scale),
        ("Seed", args.seed),
        ("Size", f"{size[0]}x{size[1]}"),
        ("Model hash", model["hash"][:10]),
        ("Model", model["name"]),
        ("Denoising strength", args.strength if args.init_img else None),
        ("Init image hash", init_hash[:10] if init_hash else None),
        ("RNG", "CPU"),
        ("Version", f"minisd {model['version']}"),
    ]
    quoted = [(k, json.dumps(v) if re.search(r"[,:\n]", str(v)) else v) for k, v in parameters]
    lines = [re.sub(r"\s*\[.*?\]", "", args.prompt)]
    lines += [f"Negative prompt: {parsed.negative}"] if parsed.negative else []
    lines.append(", ".join(f"{key}: {value}" for key, value in quoted if value is not None))
    return {
        "Dream": dream(args),
        "sd-metadata": json.dumps(invoke),
        "parameters": "\n".join(lines),
    }


# ---- reading -----------------------------------------------------------------------------------


def recall(path: str | Path) -> Recalled:
    """The settings that a picture was made with. Raises ValueError where it has none, OSError."""
    try:
        with Image.open(path) as image:
            chunks = {str(k): str(v)[:MAX_TEXT] for k, v in getattr(image, "text", {}).items()}
            chunks = chunks or {k: v for k, v in image.info.items() if isinstance(v, str)}
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: its text can't be read: {error}") from None
    except OSError as error:
        if error.filename:
            raise
        raise OSError(f"{path} is no picture that can be read: {error}") from None
    try:
        if "Dream" in chunks or "sd-metadata" in chunks:
            found = recall_invoke(chunks)
        elif "parameters" in chunks:
            found = recall_a1111(chunks["parameters"])
        else:
            raise ValueError("there is no text named Dream, sd-metadata or parameters")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path}: no settings in it that can be read: {error}"[:400]) from None
    found.args.outdir = read_line("").outdir  # a stranger's text does not choose where files go,
    found.args.iterations, found.args.grid, found.args.variants = 1, False, 0  # nor how many
    return found


def recall_invoke(chunks: dict[str, str]) -> Recalled:
    notes = []
    stored = json.loads(chunks.get("sd-metadata", "{}"))
    image = stored.get("image") or (stored.get("images") or [{}])[0]
    line = chunks.get("Dream") or dream_from_metadata(image)
    line = re.sub(r"\s--threshold[ =]0(\.0)?\b|\s--perlin[ =]0(\.0)?\b", " ", line)
    args = read_line(line)
    if image.get("type") == "img2img" and image.get("sampler") == "ddim":
        if args.sampler != "ddim":
            notes.append(
                f"sd-metadata says the sampler is ddim, Dream says {args.sampler}, which is taken: "
                "InvokeAI wrote ddim for every img2img"
            )
        elif stored.get("app_id") != "minisd":
            notes.append(
                "the sampler ddim is not to be trusted: InvokeAI wrote that for every img2img"
            )
    if args.seed is None and "seed" in image:
        args.seed = int(image["seed"])
    program = stored.get("app_id")
    if program and program != "minisd":
        notes.append(
            f"made by {str(program)[:60]} {str(stored.get('app_version', ''))[:20]} with "
            f"{str(stored.get('model_id'))[:60]}: minisd's picture will differ as its schedule does"
        )
    init_hash = image.get("orig_hash")
    return Recalled(args, notes, str(init_hash) if init_hash else None)


def dream_from_metadata(image: dict[str, Any]) -> str:
    parts = image["prompt"]
    weights = [float(part["weight"]) for part in parts]
    one = len(parts) == 1 and weights == [1.0]
    text = " ".join(
        str(part["prompt"]) + ("" if one else f":{w:g}") for part, w in zip(parts, weights)
    )
    prompt = text.replace("\\", "\\\\").replace('"', '\\"')
    words = [f'"{prompt}"']
    for switch, key in [
        ("-s", "steps"),
        ("-S", "seed"),
        ("-W", "width"),
        ("-H", "height"),
        ("-C", "cfg_scale"),
        ("-A", "sampler"),
        ("-f", "strength_steps"),
    ]:
        if image.get(key) is not None:
            words.append(f"{switch} {shlex.quote(str(image[key]))}")
    if image.get("variations"):
        words.append("-V " + ",".join(f"{v['seed']}:{v['weight']}" for v in image["variations"]))
    return " ".join(words)


def recall_a1111(text: str) -> Recalled:
    notes = ["made by AUTOMATIC1111's program: minisd's picture will differ"]
    *body, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    if len(pairs) < 3:
        raise ValueError("its text 'parameters' does not end in a line of settings")
    values = {k: json.loads(v) if v.startswith('"') else v for k, v in pairs}
    if str(values.get("Version", "")).startswith("minisd"):
        notes = []
    start = next((i for i, row in enumerate(body) if row.startswith("Negative prompt:")), len(body))
    positive = "\n".join(body[:start]).strip()
    negative = "\n".join(body[start:]).removeprefix("Negative prompt:").strip()
    if notes and re.search(r"[()\[\]]", positive + negative):
        notes.append("its weights, as in (words:1.3) and [words], are taken as words here")

    def literal(words: str) -> str:
        return re.sub(rf"([{re.escape(SPECIAL)}])", r"\\\1", words) if notes else words

    prompt = literal(positive) + (f" [{literal(negative)}]" if negative else "")
    quoted = prompt.replace("\\", "\\\\").replace('"', '\\"')
    sampler, schedule = values.get("Sampler", "LMS"), values.get("Schedule type", "")
    if sampler.endswith(" Karras"):
        sampler, schedule = sampler.removesuffix(" Karras"), "Karras"
    names = {name: ours for ours, name in A1111.items()}
    words = [f'"{quoted}"', f"-A {shlex.quote(names.get(sampler, sampler))}"]
    words += [f"--schedule {schedule.lower()}"] if schedule in ("Karras", "Model", "Ddim") else []
    for switch, key in [
        ("-s", "Steps"),
        ("-C", "CFG scale"),
        ("-S", "Seed"),
        ("-f", "Denoising strength"),
    ]:
        if key in values:
            words.append(f"{switch} {shlex.quote(values[key])}")
    if found := re.fullmatch(r"(\d+)x(\d+)", values.get("Size", "")):
        words += [f"-W {found[1]}", f"-H {found[2]}"]
    if "Denoising strength" in values:
        notes.append("it was drawn on top of a picture, which its text does not name: give it, -I")
        if len(notes) > 1:
            notes.append("AUTOMATIC1111 runs one step more at the same strength")
    return Recalled(read_line(" ".join(words)), notes, None)


def find_init_image(args: argparse.Namespace, init_hash: str | None, beside: Path) -> list[str]:
    """Point args.init_img at the file that the picture was drawn on; returns what is to be said."""
    if not args.init_img:
        return []
    given = Path(args.init_img)
    places = [given, beside / given.name, Path(given.name)]
    found = [place for place in places if place.is_file()]
    if not found:
        told = f", SHA-256 {init_hash}" if init_hash else ""
        return [f"its init image {given} is not here{told}: give it with -I"]
    same = [place for place in found if not init_hash or sha256(place) == init_hash]
    args.init_img = str((same or found)[0])
    if not same:
        return [f"{args.init_img} is not the picture that it was drawn on: its SHA-256 differs"]
    return []


def sha256(path: str | Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
