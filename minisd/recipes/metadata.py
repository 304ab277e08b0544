"""Recipes in pictures: InvokeAI's `Dream` and `sd-metadata`, AUTOMATIC1111's `parameters`.

They are written so that these programs can read them. Text in a picture comes from strangers: its
size is limited, its values are checked, and nothing in it is run or decides where files go.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import iTXt

from minisd.files import sha256
from minisd.more_samplers.guidance_rules import GUIDANCE_RULES
from minisd.prompts.syntax import PromptError, escaped, parse
from minisd.recipes import a1111, comfyui
from minisd.recipes.dream import dream_line, read_dream
from minisd.recipes.invokeai import fields_of_json, read_3, spoken_version
from minisd.recipes.recipe import DIALECTS, INIT_IMAGE, OWN, Recipe, name_of
from minisd.samplers import FACTS, SAMPLERS
from minisd.schedule import SCHEDULES

MAX_TEXT = 1 << 20  # characters of a text chunk
TEXTS = ("Dream", "sd-metadata", "parameters", "invokeai_metadata", "prompt")
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
# Texts of programs whose settings minisd does not read, and what the picture is.
OTHER_TEXTS = {
    "workflow": "it is a picture of ComfyUI with the editor's graph only, which is not read",
    "invokeai_graph": "it is a picture of InvokeAI with its graph only, which minisd does not read",
    "use_stable_diffusion_model": "it is a picture of Easy Diffusion, which minisd does not read",
    "Comment": "it has a comment, as NovelAI writes it, which minisd does not read",
}
# For samplers that minisd does not have: a part of the name, and the sampler to take instead.
NEAREST = (
    ("sde|2s", "k_dpmpp_2_a"),
    ("unipc|deis|dpmpp|dpmsolver|dpmfast|dpmadaptive", "k_dpmpp_2"),
    ("ddim", "ddim"),
    ("pndm", "plms"),
    ("heun", "k_heun"),
    ("lms", "k_lms"),
    ("dpm2", "k_dpm_2"),
    ("eulera|ddpm|lcm", "k_euler_a"),
    ("", "k_euler"),
)


class Model(NamedTuple):
    """What a picture says about the model that drew it; empty if it does not say."""

    name: str = ""
    sha256: str = ""  # of the checkpoint's file
    dtype: str = ""
    version: str = ""  # of minisd
    vae: str = ""  # the name of the file whose autoencoder replaced the checkpoint's own
    vae_sha256: str = ""
    ema: bool = False  # whether the UNet had the training averages of its weights
    prediction: str = ""  # "eps" or "v": what the UNet predicts, if chosen or not eps

    def switches(self) -> list[str]:
        """The command line's switches that load the same models from the checkpoint."""
        words = ["--vae", self.vae] if self.vae else []
        words += ["--ema"] if self.ema else []
        return words + (["--prediction", self.prediction] if self.prediction else [])

    def extras(self) -> dict[str, str]:
        """What was not loaded as the checkpoint has it, as a picture's texts name it."""
        values = {"VAE hash": self.vae_sha256, "VAE": self.vae}
        values |= {"EMA": "True" if self.ema else "", "Prediction": self.prediction}
        return {key: value for key, value in values.items() if value}


# ---- writing -------------------------------------------------------------------------------------


def texts(
    recipe: Recipe, size: tuple[int, int], model: Model, init_hash: str | None = None
) -> dict[str, str]:
    """The text chunks of a picture, by name.

    size: width and height in pixels; init_hash: SHA-256 of the init image's file
    """
    if dialect := DIALECTS[recipe.dialect]:
        recipe = dialect.own_names(recipe)
    chunks = {
        "Dream": dream_line(recipe),
        "sd-metadata": json.dumps(invokeai_metadata(recipe, size, model, init_hash)),
    }
    if recipe.dialect == OWN:
        chunks["parameters"] = a1111_parameters(recipe, size, model, init_hash)
    elif recipe.dialect == "a1111":
        more = {"Model hash": model.sha256[:10], "Model": model.name}
        more |= {"Version": "v1.10.1", "App": f"minisd {model.version}"}
        chunks["parameters"] = a1111.infotext(recipe, size, more)
    elif recipe.dialect == "comfyui":
        chunks["prompt"] = json.dumps(comfyui.graph_of(recipe, size))
    return chunks


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
        **model.extras(),
        "image": image,
    }


def a1111_parameters(
    recipe: Recipe, size: tuple[int, int], model: Model, init_hash: str | None
) -> str:
    sampler = name_of(recipe.sampler)
    settings = {
        "Steps": recipe.steps,
        "Sampler": FACTS[sampler].usual_name if sampler in FACTS else sampler,
        "Schedule type": name_of(recipe.schedule).capitalize() if recipe.schedule else None,
        "CFG scale": written(recipe.guidance),
        "Seed": recipe.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": model.sha256[:10],
        "Model": model.name,
        "Denoising strength": recipe.strength if recipe.image else None,
        "Init image hash": init_hash[:10] if init_hash else None,
        "Clip skip": recipe.clip_skip if recipe.clip_skip != 1 else None,
        **model.extras(),
        "RNG": "CPU",
        "Version": f"minisd {model.version}",
    }
    return a1111.write(recipe.full_prompt, settings)


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


def read_model(path: str | Path) -> Model:
    """What minisd wrote in a picture about the model. Raises ValueError, OSError as read_recipe."""
    return model_in(read_chunks(Path(path)))


def model_in(chunks: Mapping[str, str]) -> Model:
    """The same of the text chunks. All values come from a stranger: they are checked or cut."""
    try:
        if "Dream" in chunks or "sd-metadata" in chunks:
            stored = json.loads(chunks.get("sd-metadata", "{}"))
        else:
            rows = chunks.get("parameters", "").strip().split("\n")
            stored = dict(a1111.PAIR.findall(rows[a1111.settings_row(rows)]))
    except (ValueError, RecursionError):
        return Model()
    if not isinstance(stored, dict):
        return Model()
    if stored.get("app_id") != "minisd" and "minisd" not in str(stored.get("Version"))[:8]:
        return Model()

    def text(key: str) -> str:
        return str(stored.get(key, ""))[:200].strip('"')

    return Model(
        *map(text, ("model_id", "model_hash", "dtype", "app_version")),
        vae=Path(text("VAE")).name,  # a picture must not choose a folder
        vae_sha256=text("VAE hash"),
        ema=text("EMA") == "True",
        prediction=text("Prediction") if text("Prediction") in ("eps", "v") else "",
    )


def is_metadata(text: str) -> bool:
    """Whether a string is metadata, and not the path of a picture."""
    if "\n" in text or text.lstrip().startswith(("{", '"')):
        return True
    return bool(re.search(r"\s-[a-zA-Z]", text)) and not Path(text).exists()


def chunks_of_text(text: str) -> dict[str, str]:
    if re.search(r"^Steps: \d", text, re.M):
        return {"parameters": text}
    if not text.lstrip().startswith("{"):
        return {"Dream": text}
    if '"class_type"' in text:
        return {"prompt": text}
    return {"invokeai_metadata" if '"positive_prompt"' in text else "sd-metadata": text}


def read_chunks(path: Path) -> dict[str, str]:
    """The text chunks of a picture's file, by name. EXIF's user comment is called `parameters`."""
    try:
        with Image.open(path) as image:
            texts = getattr(image, "text", None) or image.info
            chunks = {str(k): as_utf8(v) for k, v in texts.items() if isinstance(v, str)}
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"the text in {path} can't be read: {error}") from None
    except OSError as error:
        if error.filename:
            raise
        raise OSError(f"{path} cannot be read as a picture: {error}") from None
    if isinstance(comment, bytes) and "parameters" not in chunks:
        chunks["parameters"] = user_comment(comment)
    for name in TEXTS:
        if (length := len(chunks.get(name, ""))) > MAX_TEXT:
            problem = f"{name} has {length:,} characters, and the limit is {MAX_TEXT:,}"
            raise ValueError(f"the text in {path} can't be read: {problem}")
    return chunks


def as_utf8(text: str) -> str:
    """A text as UTF-8 if its bytes are. The PNG standard demands Latin-1 except in iTXt chunks, but
    several programs write UTF-8 everywhere."""
    if not isinstance(text, iTXt):
        try:
            return text.encode("latin-1").decode("utf-8")
        except UnicodeError:
            pass  # it is Latin-1
    return str(text)


def user_comment(data: bytes) -> str:
    """EXIF's user comment: 8 bytes that name the encoding, then the text."""
    encoding, text = data[:8].rstrip(b"\0 "), data[8:]
    if encoding == b"UNICODE":  # UTF-16 in the order of AUTOMATIC1111, or in that of Windows
        little = text[1::2].count(0) > text[::2].count(0)
        return text.decode("utf-16-le" if little else "utf-16-be", "replace").strip("\0")
    return text.decode("utf-8", "replace").strip("\0")


def to_recipe(chunks: Mapping[str, str], source: str, folder: Path | None) -> Recipe:
    """The recipe in these text chunks of `source`.

    folder: where the picture is, to look for its init image; None: no file is looked for.
    """
    try:
        if "Dream" in chunks or "sd-metadata" in chunks:
            reading = read_invokeai(chunks)
        elif "parameters" in chunks:
            reading = Reading(*a1111.read(chunks["parameters"]))
        elif "invokeai_metadata" in chunks:
            reading = Reading(*read_3(chunks["invokeai_metadata"]))
        elif "use_stable_diffusion_model" not in chunks and "prompt" in chunks:
            reading = Reading(*comfyui.read(chunks["prompt"]))
        elif names := [name for name in OTHER_TEXTS if name in chunks]:
            raise ValueError(OTHER_TEXTS[names[0]])
        else:
            raise ValueError("there is no text named Dream, sd-metadata or parameters")
        fields, more_notes = usable(reading.fields)
        notes = [*reading.notes, *more_notes]
        if words := model_in(chunks).switches():
            notes.append(f"it was drawn with {' '.join(words)[:300]}")
        if fields.get("image") and folder is not None:
            fields["image"], more_notes = find_init_image(
                fields["image"], reading.init_hash, folder
            )
            notes += more_notes
        return spoken_or_own(Recipe(**fields, notes=tuple(notes)))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        is_plain = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
        problem = str(error) if is_plain else "its text has an unknown form"
        raise ValueError(f"{source} has no settings that can be read: {problem}"[:400]) from None


def usable(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields without those that minisd refuses to draw, and notes on the change.

    A picture must not choose a file to run. Raises ValueError if there is no prompt.
    """
    kept, notes = dict(fields), []
    if "prompt" not in kept:
        raise ValueError("it has no prompt")
    for name in ("sampler", "schedule", "guidance", "guidance_rule"):
        if ".py:" in str(kept.get(name)):
            own = kept.pop(name)[:100]
            notes.append(f"the {name} was {own}, which is not run: choose it yourself")
    sampler = kept.get("sampler")
    if sampler is not None and sampler not in SAMPLERS:
        kept["sampler"], is_same = nearest_sampler(sampler)
        if not is_same:
            name = kept["sampler"]
            notes.append(f"the sampler {sampler[:60]} is not here: the nearest, {name}, is used")
            if kept.pop("options", None):
                notes.append("its options were left out")
    spoken = kept.get("dialect", OWN) != OWN
    if spoken and kept["dialect"] not in DIALECTS:
        notes.append(f"the dialect {kept.pop('dialect')[:60]} is not here: minisd's rules are used")
        kept.pop("options", None)
        spoken = False
    schedule = kept.get("schedule")
    if schedule is not None and schedule not in SCHEDULES and not spoken:
        del kept["schedule"]
        notes.append(f"the schedule {schedule[:60]} is not here: the sampler's own is used")
    rule = kept.get("guidance_rule")
    if rule is not None and rule not in GUIDANCE_RULES:
        del kept["guidance_rule"]
        notes.append(f"the guidance rule {rule[:60]} is not here: plain guidance is used")
    if (kept.get("seed") or 0) < 0:
        notes.append(f"the seed was {kept.pop('seed')}, which is not a seed: choose one")
    if kept.get("mask") and not kept.get("image"):
        notes.append(f"the mask {kept.pop('mask')} was left out, because there is no init image")
    if spoken:  # its syntax is another one
        return kept, notes
    try:
        parse(kept["prompt"])
    except PromptError as error:
        kept["prompt"] = escaped(kept["prompt"])
        notes.append(f"the prompt is taken as plain words: {error}")
    return kept, notes


def spoken_or_own(recipe: Recipe) -> Recipe:
    """The recipe; if its dialect cannot draw it, the same with minisd's rules, and a note."""
    dialect = DIALECTS[recipe.dialect]
    if dialect is None:
        return recipe
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dialect.check(recipe)
    except ValueError as error:
        note = (
            f"the dialect {recipe.dialect} cannot draw it ({error!s:.200}): minisd's rules are used"
        )
        schedule = recipe.schedule if recipe.schedule in SCHEDULES else None
        prompt, notes = escaped(recipe.prompt), (*recipe.notes, note)
        own = {"dialect": OWN, "options": {}, "schedule": schedule, "prompt": prompt}
        return replace(recipe, notes=notes, **own)
    return recipe


def nearest_sampler(name: str) -> tuple[str, bool]:
    """minisd's sampler for another program's name, and whether it is the same method."""

    def plain(text: str) -> str:
        text = text.lower().replace("++", "pp").replace("ancestral", "a")
        return re.sub(r"[^a-z0-9]", "", text)

    known = {plain(facts.usual_name): own for own, facts in reversed(FACTS.items())}
    for text in (plain(name), plain(name).removeprefix("k")):
        if text in known:
            return known[text], True
    return next(own for part, own in NEAREST if re.search(part, plain(name))), False


def read_invokeai(chunks: Mapping[str, str]) -> Reading:
    stored = json.loads(chunks.get("sd-metadata", "{}"))
    if not isinstance(stored, dict):
        raise ValueError("its text sd-metadata is not a JSON object")
    image = stored.get("image") or (stored.get("images") or [{}])[0]
    if "Dream" in chunks:
        reading = Reading(*read_dream(chunks["Dream"]))
    else:
        reading = Reading(*fields_of_json(image))
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
    version = spoken_version(stored)
    if version is not None:
        fields["dialect"], era = version
        fields["options"] = {"era": era}
        notes.append(
            f"made by InvokeAI {era}: its dialect is spoken. The text does not say whether the "
            "noise was a GPU's or a CPU's: noise_source=GPU is taken, and --set changes it"
        )
    elif program and program != "minisd":
        maker = f"{program} {stored.get('app_version', '')}".strip()[:80]
        checkpoint = stored.get("model_id") or stored.get("model_weights")
        drawn_with = f" with {checkpoint}"[:70] if checkpoint else ""
        notes.append(
            f"made by {maker}{drawn_with}: minisd's picture will differ, because its schedule does"
        )
    if image.get("orig_hash"):
        reading.init_hash = str(image["orig_hash"])
    return reading


def find_init_image(image: str, wanted: str | None, folder: Path) -> tuple[str, list[str]]:
    """The file that the picture was drawn on, and a note if it is not here.

    image: its path as the text names it, or INIT_IMAGE; wanted: its SHA-256, if the text has it
    """
    given = Path(image)
    places = [] if image == INIT_IMAGE else [given, folder / given.name, Path(given.name)]
    files = [place for place in places if place.is_file()]
    if not files:
        its_hash = f", SHA-256 {wanted}" if wanted else ""
        if image == INIT_IMAGE:
            return image, [f"the text does not name the init image{its_hash}: give it with -I"]
        return image, [f"its init image {given} is not here{its_hash}: give it with -I"]
    same = [file for file in files if wanted is None or sha256(file) == wanted]
    if not same:
        problem = "is not the picture that it was drawn on: its SHA-256 differs"
        return str(files[0]), [f"{files[0]} {problem}"]
    return str(same[0]), []
