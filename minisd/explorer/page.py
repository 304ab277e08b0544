"""Runs -> one HTML file that holds everything and loads nothing."""

import html
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minisd.explorer.runs import Run
from minisd.figures.attention import heat
from minisd.images import to_pil
from minisd.observe.ledger import Ledger
from minisd.observe.tiles import data_uri, latent_image
from minisd.recipes import Job
from minisd.recipes.recipe import name_of
from minisd.schedule import default_schedule, levels_of
from minisd.stable_diffusion import StableDiffusion

MAX_WORDS = 12  # words whose attention is shown
TILE = 256  # the largest side of the pictures of steps, in pixels


def make_page(job: Job, runs: Iterator[Run], command: str) -> str:
    """The page as HTML text. `command` is the shell line that makes the page again.

    job: the one that the runs were drawn from; its image is a picture.
    """
    recipe, sd = job.recipe, job.sd
    assert isinstance(job.image, Image.Image)
    _, schedule, guidance = replace(recipe, schedule=job.schedule).functions()
    words: list[str] = []
    run_list: list[dict[str, Any]] = []
    for run in runs:  # each run's tensors are freed before the next run starts
        words = [word.text for word in run.maps.words][:MAX_WORDS]
        run_list.append(run_data(sd, run))
        del run
    data = {
        "prompt": recipe.prompt,
        "words": words,
        "steps": recipe.steps,
        "sampler": name_of(recipe.sampler),
        "schedule": name_of(recipe.schedule or default_schedule(recipe.sampler)),
        "guidance": guidance if isinstance(guidance, int | float) else name_of(recipe.guidance),
        "seed": recipe.seed,
        "size": job.size,
        "latent": [side // sd.vae.factor for side in job.size],
        "sigmas": levels_of(schedule, recipe.steps),
        "init_image": data_uri(shrunk(job.image), exact=max(job.size) <= 64),
        "runs": run_list,
        "model": sd.name,
        "version": version("minisd"),
        "command": command,
    }
    return fill_template(f"{recipe.prompt} · minisd explorer", data)


def fill_template(title: str, data: dict[str, Any]) -> str:
    """The template with style, script and data in it.

    A prompt may contain tags. None of them can end the element that the prompt stands in: the
    title is escaped, and the data contain no `<`.
    """
    folder = Path(__file__).parent
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text("utf-8"),
        "script": (folder / "page.js").read_text("utf-8"),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (folder / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def run_data(sd: StableDiffusion, run: Run) -> dict[str, Any]:
    """The page's data of one run.

    Each sheet is a row of tiles: the init image's, one for each step, the result's. The sheets
    "eps" and "words" have only the steps' tiles, and "words" has one such row for each word.
    """

    def preview(latent: Tensor, bias: Iterable[float] = sd.latent_rgb_bias) -> Image.Image:
        return latent_image(latent, sd.latent_rgb, bias)

    first, last = preview(run.encoded), preview(run.latent)
    x_in = [step.x / (step.sigma**2 + 1) ** 0.5 for step in run.steps]
    sheets = {
        "x": sheet([[first, *(preview(x) for x in x_in), last]]),
        "x0": sheet([[first, *(preview(step.x0) for step in run.steps), last]]),
        "image": sheet([[*(shrunk(to_pil(image)) for image in run.decoded), shrunk(run.image)]]),
    }
    words = range(min(len(run.maps.words), MAX_WORDS))
    maps = [[run.maps.word(i, step) for step in range(len(run.steps))] for i in words]
    if run.steps:  # without the bias, which belongs to latents of pictures: zero noise is grey
        sheets["eps"] = sheet([[preview(step.eps, (0.0, 0.0, 0.0)) for step in run.steps]])
    if run.steps and maps:
        sheets["words"] = sheet([[heat(attention) for attention in row] for row in maps])
    return {
        "strength": run.strength,
        "steps_run": len(run.steps),
        "sheets": sheets,
        "shares": [[round(float(attention.mean()), 4) for attention in row] for row in maps],
        "ledger": ledger_data(run.ledger),
    }


def ledger_data(ledger: Ledger) -> dict[str, float | None]:
    """The ledger's numbers, by the names that page.js reads."""
    names = ("sigma_added", "sigma_expected", "t_expected", "image_gain", "snr", "image_share")
    return {name: getattr(ledger, name) for name in (*names, "calls")}


def shrunk(image: Image.Image) -> Image.Image:
    """The picture, scaled down if a side is longer than TILE."""
    image = image.copy()
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def sheet(rows: list[list[Image.Image]]) -> str:
    """Rows of tiles of one size, as a data URI. Lossless if the tiles are small."""
    w, h = rows[0][0].size
    image = Image.new("RGB", (w * len(rows[0]), h * len(rows)))
    for j, row in enumerate(rows):
        for i, tile in enumerate(row):
            image.paste(tile, (i * w, j * h))
    return data_uri(image, exact=max(w, h) <= 64)
