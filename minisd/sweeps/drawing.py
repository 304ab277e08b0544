"""Many jobs, drawn in batches into a folder, where an interrupted sweep can be continued.

The jobs share everything but the values of axes.py, so the text and the init image are encoded
once. Each run's ledger is checked. A picture that is in the folder is not drawn again.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minisd.observe.ledger import Ledger
from minisd.observe.plan import plan
from minisd.recipes.recipe import Job, Recipe, name_of
from minisd.run import Result, choose, encode
from minisd.sweeps.axes import file_word
from minisd.sweeps.lockstep import lockstep

BATCH = 16  # pictures of 64x64 pixels; fewer of larger ones
NOTES = "sweep.json"


def file_name(recipe: Recipe) -> str:
    strength = "" if recipe.image is None else f"f{recipe.strength:.12g}-"
    return f"{strength}s{recipe.steps}-{file_word(recipe.sampler)}-S{recipe.seed}.png"


# ---- the folder ----------------------------------------------------------------------------------


def read_notes(folder: Path) -> dict[str, Any]:
    """What an earlier sweep noted of itself; empty if there was none."""
    path = folder / NOTES
    if not path.exists():
        return {}
    try:
        notes = json.loads(path.read_bytes())
    except ValueError:
        notes = None
    if not isinstance(notes, dict) or "seed" not in notes:
        raise ValueError(f"{path} was not written by a sweep: choose another folder")
    return notes


def claim(folder: Path, job: Job, dtype: str, names: Sequence[str]) -> None:
    """Note the sweep's settings in its folder, and the names of the files that it writes.

    job is the sweep's first. Raises ValueError if the folder holds another sweep, or a file of such
    a name that no sweep wrote.
    """
    if len(set(names)) < len(names):
        raise ValueError("two runs of the sweep have the same file name: rename one sampler")
    notes, shared = read_notes(folder), shared_settings(job, dtype)
    files = notes.pop("files", names if notes else [])  # sweeps of older versions noted no files
    seed = notes.pop("seed", job.recipe.seed)
    differ = [key for key in {**shared, **notes} if notes.get(key) != shared.get(key)]
    if notes and differ:
        settings = " and ".join(differ)
        raise ValueError(f"{folder} holds a sweep with another {settings}: choose another folder")
    for name in names:
        if name not in files and (folder / name).exists():
            raise ValueError(
                f"{folder / name} exists, and no sweep wrote it: choose another folder"
            )
    shared |= {"seed": seed, "files": sorted({*files, *names})}
    write_whole(folder / NOTES, json.dumps(shared, indent=1).encode())


def shared_settings(job: Job, dtype: str) -> dict[str, Any]:
    """The settings that all jobs of a sweep share, as JSON can hold them."""
    recipe, plain = job.recipe, Recipe("")
    settings = {
        "prompt": recipe.prompt,
        "guidance": recipe.guidance if not callable(recipe.guidance) else name_of(recipe.guidance),
        "schedule": recipe.schedule and name_of(recipe.schedule),
        "size": list(job.size),
        "init": picture_hash(job.image),
        "model": job.sd.name,
        "dtype": dtype,
    }
    if job.mask is not None:
        settings["mask"] = picture_hash(job.mask)
    for name in ("negative_prompt", "paste", "normalize", "variations", "options"):
        if (value := getattr(recipe, name)) != getattr(plain, name):
            settings[name] = repr(value)
    return settings


def picture_hash(picture: Image.Image | Tensor | None) -> str | None:
    if picture is None:
        return None
    values = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    return hashlib.sha256(values.tobytes()).hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write all of a file or nothing. It replaces a file of that name: `claim` it first."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def png_bytes(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


# ---- drawing -------------------------------------------------------------------------------------


def draw_missing(
    jobs: Sequence[Job], folder: Path, batch: int | None = None, refuse: bool = True
) -> Iterator[int]:
    """Draw the jobs whose pictures are not in the folder, and write them, the longest runs first.

    Yields the number of pictures written, after each batch. Raises NoiseMismatch if a run's ledger
    refuses it; with refuse=False it warns.
    """
    missing = [job for job in jobs if not (folder / file_name(job.recipe)).exists()]
    if not missing:
        return
    missing.sort(key=n_calls, reverse=True)
    width, height = missing[0].size
    batch = batch or max(1, BATCH * 64 * 64 // (width * height))
    latent = encoded_image(missing[0])
    for i in range(0, len(missing), batch):
        group = [replace(job, image=latent) for job in missing[i : i + batch]]
        for job, result in zip(group, draw_together(group, refuse), strict=True):
            write_whole(folder / file_name(job.recipe), png_bytes(result.image))
        yield len(group)


def encoded_image(job: Job) -> Image.Image | Tensor | None:
    """The job's init image as a latent; inpainting needs the picture itself."""
    if job.image is None or job.inpaints:
        return job.image
    with torch.inference_mode():
        return encode(job.sd, job.image)


def n_calls(job: Job) -> int:
    recipe = job.recipe
    strength = 1 if job.image is None else recipe.strength
    return plan(recipe.steps, strength, recipe.sampler, recipe.schedule).calls


def draw_together(jobs: Sequence[Job], refuse: bool = True) -> list[Result]:
    """The jobs' results. They share one model, whose calls are evaluated in batches."""

    def run_of(job: Job) -> Callable[[nn.Module], Result]:
        def run(network: Any) -> Result:
            sd = replace(job.sd, unet=network)
            with Ledger(sd, refuse) as ledger:
                return replace(job, sd=sd).draw(ledger)

        return run

    unet, runs = jobs[0].sd.unet, [run_of(job) for job in jobs]
    return [runs[0](unet)] if len(runs) == 1 else lockstep(unet, runs)


def check_names(recipes: Sequence[Recipe]) -> None:
    """Raises ValueError or OSError for a sampler, schedule or guidance rule that is not there."""
    for recipe in recipes:
        choose(recipe.sampler, recipe.schedule, recipe.guidance)
