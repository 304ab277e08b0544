"""Many jobs, drawn in batches into a folder, where an interrupted sweep can be continued.

The jobs share everything but the values of axes.py, so the text and the init image are encoded
once. Each run's ledger is checked. A picture that is in the folder is not drawn again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minisd.files import is_taken, png_bytes, write_file
from minisd.observe.finite import stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.plan import plan
from minisd.observe.watch import together
from minisd.recipes.metadata import Model
from minisd.recipes.recipe import DIALECTS, Job, Recipe, name_of
from minisd.run import Result, encode
from minisd.sweeps.axes import file_word
from minisd.sweeps.lockstep import lockstep

BATCH = 16  # pictures of 64x64 pixels; fewer of larger ones
NOTES = "sweep.json"


def file_name(recipe: Recipe) -> str:
    strength = "" if recipe.image is None else f"f{recipe.strength:.12g}-"
    return f"{strength}s{recipe.steps}-{file_word(recipe.sampler)}-S{recipe.seed}.png"


# ---- the folder ----------------------------------------------------------------------------------


def read_notes(folder: Path) -> dict[str, Any]:
    """What an earlier sweep noted of itself; empty if there was none. Raises ValueError."""
    path, notes = folder / NOTES, None
    if not is_taken(path):
        return {}
    if path.is_file() and not path.is_symlink():
        try:
            notes = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            pass
    if not isinstance(notes, dict) or "seed" not in notes:
        raise ValueError(f"{path} was not written by a sweep: choose another folder")
    return notes


def check_files(folder: Path, names: Sequence[str]) -> None:
    """Check the names of the files that a sweep writes, before anything is drawn.

    Raises ValueError if two are the same, or if the folder holds a file of such a name that no
    sweep wrote. Raises OSError for a name that is too long.
    """
    if len(set(names)) < len(names):
        raise ValueError("two runs of the sweep have the same file name: rename one sampler")
    notes = read_notes(folder)
    files = notes.get("files", names if notes else [])  # sweeps of older versions noted no files
    for name in names:
        if is_taken(folder / name) and name not in files:
            raise ValueError(
                f"{folder / name} exists, and no sweep wrote it: choose another folder"
            )


def claim(folder: Path, job: Job, model: Model, names: Sequence[str]) -> None:
    """Note the sweep's settings in its folder, and the names of the files that it writes.

    job is the sweep's first. Raises ValueError if the folder holds another sweep.
    """
    notes, shared = read_notes(folder), shared_settings(job, model)
    is_first = not notes
    files, seed = notes.pop("files", []), notes.pop("seed", job.recipe.seed)
    differ = [key for key in {**shared, **notes} if notes.get(key) != shared.get(key)]
    if differ and not is_first:
        settings = " and ".join(differ)
        raise ValueError(f"{folder} holds a sweep with another {settings}: choose another folder")
    shared |= {"seed": seed, "files": sorted({*files, *names})}
    data = json.dumps(shared, indent=1).encode()
    try:
        write_file(folder / NOTES, data, lambda _: not is_first and bool(read_notes(folder)))
    except FileExistsError:  # another process has started a sweep here at the same time
        claim(folder, job, model, names)


def shared_settings(job: Job, model: Model) -> dict[str, Any]:
    """The settings that all jobs of a sweep share, as JSON can hold them."""
    recipe, plain = job.recipe, Recipe("")
    settings = {
        "prompt": recipe.prompt,
        "guidance": recipe.guidance if not callable(recipe.guidance) else name_of(recipe.guidance),
        "schedule": recipe.schedule and name_of(recipe.schedule),
        "size": list(job.size),
        "init": picture_hash(job.image),
        "model": model.name,
        "checkpoint": model.sha256,
        "dtype": model.dtype,
    }
    if recipe.guidance_rule:
        settings["guidance_rule"] = recipe.guidance_rule
    if job.mask is not None:
        settings["mask"] = picture_hash(job.mask)
    if job.sd.vae_path is not None:
        settings["vae"] = job.sd.vae_path.name
    if job.sd.ema:
        settings["ema"] = True
    for name in ("dialect", "negative_prompt", "paste", "normalize", "variations", "options"):
        if (value := getattr(recipe, name)) != getattr(plain, name):
            settings[name] = repr(value)
    return settings


def picture_hash(picture: Image.Image | Tensor | None) -> str | None:
    if picture is None:
        return None
    values = picture.cpu().numpy() if isinstance(picture, Tensor) else picture
    return hashlib.sha256(values.tobytes()).hexdigest()


# ---- drawing -------------------------------------------------------------------------------------


def draw_missing(
    jobs: Sequence[Job],
    folder: Path,
    texts_of: Callable[[Job], Mapping[str, str]],
    batch: int | None = None,
    refuse: bool = True,
) -> Iterator[int]:
    """Draw the jobs whose pictures are not in the folder, and write them, the longest runs first.

    texts_of: the text chunks of a job's picture. Yields the number of pictures drawn, after each
    batch. Raises NoiseMismatch if a run's ledger refuses it; with refuse=False it warns.
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
            data = png_bytes(result.image, texts_of(job))
            try:
                write_file(folder / file_name(job.recipe), data)
            except FileExistsError:
                pass  # another process of the same sweep has drawn it
        yield len(group)


def encoded_image(job: Job) -> Image.Image | Tensor | None:
    """The job's init image as a latent; inpainting needs the picture itself."""
    if job.image is None or job.inpaints or DIALECTS[job.recipe.dialect]:
        return job.image  # a dialect may use draws of the seed to encode
    with torch.inference_mode():
        return encode(job.sd, job.image)


def n_calls(job: Job) -> int:
    recipe = job.recipe
    if dialect := DIALECTS[recipe.dialect]:
        return len(dialect.sigmas(recipe))
    strength = 1 if job.image is None else recipe.strength
    return plan(recipe.steps, strength, recipe.sampler, recipe.schedule).calls


def draw_together(jobs: Sequence[Job], refuse: bool = True) -> list[Result]:
    """The jobs' results. They share one model, whose calls are evaluated in batches."""

    def run_of(job: Job) -> Callable[[nn.Module], Result]:
        def run(network: Any) -> Result:
            sd = replace(job.sd, unet=network)
            spoken = DIALECTS[job.recipe.dialect] is not None
            with Ledger(sd, refuse, spoken) as ledger:
                return replace(job, sd=sd).draw(together(stop_at_nan(job.sd), ledger))

        return run

    unet, runs = jobs[0].sd.unet, [run_of(job) for job in jobs]
    return [runs[0](unet)] if len(runs) == 1 else lockstep(unet, runs)


def check_names(recipes: Sequence[Recipe]) -> None:
    """Raises ValueError or OSError for a name or an option that is not there."""
    for recipe in recipes:
        recipe.functions()
