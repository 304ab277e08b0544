"""Whether a picture can be drawn again, and if not, why.

    verdict = verify("fire.png", sd)
    verdict.line()   # identical ... | within rounding: 12 of 12,288 values ... | different: ...

The picture's own recipe is drawn again. The only files that are read are the picture and those that
the caller names: a path in a picture's text is never opened.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from minisd.exact_mode import exact, is_exact
from minisd.fast.openvino import engine_of
from minisd.images import Picture, open_image
from minisd.proof.record import environment, picture_hash, read_enclosures, read_record
from minisd.recipes import Job, Recipe, prepare
from minisd.recipes.dream import read_dream
from minisd.recipes.metadata import Model, read_chunks, to_recipe, usable
from minisd.recipes.recipe import name_of
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES
from minisd.stable_diffusion import StableDiffusion

# A value this far off, of 255, can be rounding: pictures are truncated to whole numbers, so the
# smallest difference can change a value by 1, and the steps of a run amplify it a little.
ROUNDING = 2
MAX_THREADS = 256
# What the record says and what is so now: entry, and words with the two.
CHANGES = (
    ("checkpoint", "another checkpoint: its SHA-256 is {now:.12}, and it was {then:.12}"),
    ("autoencoder", "another autoencoder: its SHA-256 is {now:.12}, and it was {then:.12}"),
    ("ema", "training averages: now {now}, and it was {then}"),
    ("prediction", "another prediction: now {now}, and it was {then}"),
    ("init_image", "another init image: its pixels differ from those that were drawn on"),
    ("mask", "another mask"),
    ("minisd", "another version of minisd: {now}, and it was {then}"),
    ("dtype", "another dtype: {now}, and it was {then}"),
    ("engine", "another engine: {now}, and it was {then}"),
    ("exact", "exact mode: now {now}, and it was {then}"),
    ("device", "another device: {now}, and it was {then}"),
    ("torch", "another version of torch: {now}, and it was {then}"),
    ("instructions", "other instructions of the processor: {now}, and it was {then}"),
    ("threads", "another number of threads: {now}, and it was {then}"),
    ("batch", "another batch: {now} at a time, and it was {then}"),
)
# In exact mode these change nothing.
HARMLESS = ("device", "torch", "instructions", "threads", "batch")


@dataclass(frozen=True)
class Verdict:
    """How far the new drawing is from the picture, and what differs between the two runs."""

    values: int  # of the picture: width * height * 3; 0 if the sizes differ
    off: int  # how many of them differ
    farthest: int  # the largest difference, of 255
    causes: tuple[str, ...]
    conditions: str  # under which it was drawn again

    @property
    def word(self) -> str:
        if self.off == 0 and self.values:
            return "identical"
        return "within rounding" if self.values and self.farthest <= ROUNDING else "different"

    @property
    def status(self) -> int:
        """0 identical, 1 within rounding, 3 different. (2 is a mistake in the command.)"""
        return {"identical": 0, "within rounding": 1, "different": 3}[self.word]

    def line(self) -> str:
        if self.word == "identical":
            return f"identical ({self.conditions})"
        distance = f"{self.off:,} of {self.values:,} values differ, by {self.farthest} at most"
        distance = distance if self.values else "the sizes differ"
        why = "; ".join(self.causes) or "the picture does not say why"
        return f"{self.word}: {distance} ({self.conditions}); {why}"


def verify(
    path: str | Path,
    sd: StableDiffusion,
    model: Model | None = None,
    image: Picture | None = None,
    mask: Picture | None = None,
    search: bool = False,
) -> Verdict:
    """Draw the picture in the file again with this model, and compare.

    model   what is known of the loaded files: to say whether the picture was drawn with others
    image, mask  the init image and the mask, where the picture does not hold them itself
    search  if the two differ, draw with every sampler and schedule, to name the one that was used

    It is drawn with as many threads as the picture's record says, and in exact mode if that was on.
    Raises ValueError for a picture without settings or init image, OSError if it cannot be read.
    """
    path = Path(path)
    chunks = read_chunks(path)
    try:
        record = read_record(chunks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    recipe = to_recipe(chunks, str(path), None)
    image, mask = drawn_on(path, recipe, image, mask)
    picture = open_image(path).convert("RGB")
    if recipe.seed is None:
        raise ValueError(f"{path} does not say its seed, so it cannot be drawn again")

    def draw(recipe: Recipe) -> tuple[Job, Image.Image | None]:
        """The job and its picture. None for another size: a text could ask for a gigantic one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user chose none of these settings now
            job = prepare(recipe, sd, image, mask if image is not None else None)
            return job, job.draw().image if job.size == picture.size else None

    with arithmetic_of(record):
        job, redrawn = draw(recipe)
        values, off, farthest = distance(picture, redrawn)
        now = facts_now(job, sd, model)
        conditions = f"{'exact mode, ' * is_exact()}{now['dtype']} on {now['device']}"
        if recipe.dialect != "minisd":
            conditions = f"as {recipe.dialect} draws it, {conditions}"
        causes = []
        if off or not values:
            causes = edits(chunks, record, picture) + changes(record, now)
            if search:
                causes += search_settings(recipe, picture, draw)
    return Verdict(values, off, farthest, tuple(causes), conditions)


def drawn_on(
    path: Path, recipe: Recipe, image: Picture | None, mask: Picture | None
) -> tuple[Picture | None, Picture | None]:
    """The init image and the mask: those that the caller names, or those inside the picture."""
    stored_image, stored_mask = (None, None)
    if recipe.image is not None and (image is None or mask is None):
        stored_image, stored_mask = read_enclosures(path)
    image = stored_image if image is None else image
    mask = stored_mask if mask is None else mask
    if recipe.image is not None and image is None:
        name = f"{recipe.image}"[:80]
        raise ValueError(f"{path} was drawn on another picture ({name}): name that with -I")
    if recipe.mask is not None and mask is None:
        raise ValueError(f"{path} was drawn with a mask ({recipe.mask!s:.80}): name that with -M")
    return (None, None) if recipe.image is None else (image, mask)


@contextmanager
def arithmetic_of(record: Mapping[str, Any]) -> Iterator[None]:
    """Within the block: exact mode and the number of threads as the record has them."""
    threads = torch.get_num_threads()
    if 0 < record.get("threads", 0) <= MAX_THREADS:
        torch.set_num_threads(record["threads"])
    try:
        with exact() if record.get("exact") and not is_exact() else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)


def distance(a: Image.Image, b: Image.Image | None) -> tuple[int, int, int]:
    """(values, how many differ, the largest difference) of two RGB pictures.

    (0, 0, 255) if their sizes differ or there is no second one.
    """
    if b is None or a.size != b.size:
        return 0, 0, 255
    difference = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
    return difference.size, int((difference > 0).sum()), int(difference.max())


# ---- why -----------------------------------------------------------------------------------------


def facts_now(job: Job, sd: StableDiffusion, model: Model | None) -> dict[str, Any]:
    dtype = str(next(sd.unet.parameters()).dtype).removeprefix("torch.")
    facts = environment(sd.device, dtype) | {
        "init_image": picture_hash(job.image),
        "mask": picture_hash(job.mask),
        "batch": 1,
        "ema": sd.ema,
        "engine": engine_of(sd) or "torch",
    }
    if model is not None:
        facts |= {"checkpoint": model.sha256, "prediction": model.prediction or "eps"}
        facts |= {"autoencoder": model.vae_sha256 or "the checkpoint's own"}
    return facts


def changes(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the record says otherwise, in words, the gravest first."""
    if not record:
        return ["it has no record of the files and the machine that drew it"]
    then = {"autoencoder": "the checkpoint's own", "prediction": "eps", "engine": "torch", **record}
    causes = []
    for name, words in CHANGES:
        differs = name in then and name in now and then[name] != now[name] is not None
        if name == "exact" and differs:
            states = {True: "on", False: "off"}
            causes.append(words.format(now=states[now[name]], then=states[then[name]]))
        elif differs and not (name in HARMLESS and record.get("exact") and now["exact"]):
            causes.append(words.format(now=now[name], then=then[name]))
    return causes


def edits(chunks: Mapping[str, str], record: Mapping[str, Any], picture: Image.Image) -> list[str]:
    """What was changed in the file after it was drawn, as far as its record tells."""
    causes = []
    if record.get("pixels") not in (None, picture_hash(picture)):
        causes.append("the picture itself was changed after it was drawn")
    line, dream = record.get("line"), chunks.get("Dream")
    if line is not None and dream is not None and line != dream:
        causes.append(f"its settings were changed: {changed_fields(line, dream)}")
    return causes


def changed_fields(line: str, dream: str) -> str:
    """`the sampler was k_lms, and now is ddim`, for each field that differs."""
    try:
        then, now = (Recipe(**usable(read_dream(text)[0])[0]) for text in (line, dream))
    except (ValueError, TypeError):
        return "its record names others"
    names = [field.name for field in fields(Recipe) if field.name != "notes"]
    differ = [name for name in names if getattr(then, name) != getattr(now, name)]
    words = [
        f"the {name} was {name_of(getattr(then, name))}, and now is {name_of(getattr(now, name))}"
        for name in differ
    ]
    return ", ".join(words)[:400] or "in their spelling"


def search_settings(recipe: Recipe, picture: Image.Image, draw: Any) -> list[str]:
    """The samplers and schedules of minisd that draw this very picture, in words."""
    trials = [("sampler", name) for name in SAMPLERS if name != recipe.sampler]
    trials += [("schedule", name) for name in SCHEDULES if name != recipe.schedule]
    matches = []
    for field, name in trials if recipe.dialect == "minisd" else ():
        try:
            _, redrawn = draw(replace(recipe, **{field: name, "options": {}}))
        except ValueError:
            continue  # this sampler refuses these settings
        values, _, farthest = distance(picture, redrawn)
        if values and farthest <= ROUNDING:
            matches.append(f"with the {field} {name} it is the same")
    return matches or ["no other sampler or schedule of minisd gives it"]
