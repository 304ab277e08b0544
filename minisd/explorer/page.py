"""Runs -> one HTML file that holds everything and loads nothing."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from minisd.explorer.runs import Run, shrunk
from minisd.explorer.tiles import grid, latent_tiles, picture_tile, word_shares, words_of_run
from minisd.files.template import fill_template
from minisd.observe.ledger import Ledger
from minisd.observe.tiles import data_uri
from minisd.recipes import Job, Recipe
from minisd.recipes.recipe import OWN, name_of, option_text
from minisd.schedule import default_schedule, levels_of

FOLDER = Path(__file__).parent
STRENGTHS = [round(i / 10, 1) for i in range(11)]


def make_page(job: Job, runs: Iterator[Run], command: str) -> str:
    """The page as HTML text. `command` is the shell line that makes the page again.

    job: the one that the runs were drawn from; its image is a picture.
    """
    assert isinstance(job.image, Image.Image)
    words: list[str] = []
    run_list: list[dict[str, Any]] = []
    for run in runs:  # each run's tensors are freed before the next run starts
        words = words_of_run(run)
        run_list.append(run_data(run))
        del run
    data = {
        **settings_data(job),
        "words": words,
        "init_image": data_uri(shrunk(job.image), exact=max(job.size) <= 64),
        "runs": run_list,
        "command": command,
    }
    return fill_template(FOLDER / "page.html", f"{job.recipe.prompt} · minisd explorer", data)


def settings_data(job: Job) -> dict[str, Any]:
    """What the page says of all runs of a job: its settings, sizes, and noise levels."""
    recipe, sd = job.recipe, job.sd
    _, schedule, guidance = replace(recipe, schedule=job.schedule).functions()
    return {
        "prompt": recipe.prompt,
        "steps": recipe.steps,
        "sampler": name_of(recipe.sampler),
        "schedule": name_of(recipe.schedule or default_schedule(recipe.sampler)),
        "guidance": guidance if isinstance(guidance, int | float) else name_of(recipe.guidance),
        "seed": recipe.seed,
        "size": job.size,
        "latent": [side // sd.vae.factor for side in job.size],
        "sigmas": levels_of(schedule, recipe.steps),
        "model": sd.name,
        "version": version("minisd"),
    }


def run_data(run: Run) -> dict[str, Any]:
    """The page's data of one run.

    Each sheet is a row of tiles: the init image's, one for each step, the result's. The sheets
    "eps" and "words" have only the steps' tiles, and "words" has one such row for each word.
    """
    frames = range(len(run.steps) + 2)
    rows: dict[str, list[Image.Image]] = {}
    for frame in frames:
        for view, tile in latent_tiles(run, frame).items():
            rows.setdefault(view, []).append(tile)
    rows["image"] = [picture_tile(run, frame) for frame in frames]
    shares = [word_shares(run, step) for step in frames[1:-1]]
    words = range(len(words_of_run(run)))

    def is_small(view: str) -> bool:
        return max(rows["image" if view == "image" else "x"][0].size) <= 64

    return {
        "strength": run.strength,
        "steps_run": len(run.steps),
        # Sheets of small tiles are without loss.
        "sheets": {view: data_uri(grid([row]), is_small(view)) for view, row in rows.items()},
        "shares": [[of_step[word] for of_step in shares] for word in words],
        "ledger": ledger_data(run.ledger),
    }


def ledger_data(ledger: Ledger) -> dict[str, float | None]:
    """The ledger's numbers, by the names that viewer.js reads."""
    names = ("sigma_added", "sigma_expected", "t_expected", "image_gain", "snr", "image_share")
    return {name: getattr(ledger, name) for name in (*names, "calls")}


def explore_command(
    recipe: Recipe, strengths: Iterable[float], model: str | None = None, dtype: str = "float32"
) -> str:
    """The shell line that makes the page of these runs again."""
    assert recipe.image is not None
    words = ["-I", Path(recipe.image).name, "-s", f"{recipe.steps}", "-S", f"{recipe.seed}"]
    words += ["-C", name_of(recipe.guidance)]
    words += ["--guidance-rule", recipe.guidance_rule] if recipe.guidance_rule else []
    words += ["-A", name_of(recipe.sampler)]
    if list(strengths) != STRENGTHS:
        words += ["-f", ",".join(f"{strength:g}" for strength in strengths)]
    if recipe.schedule:
        words += ["--schedule", name_of(recipe.schedule)]
    words += ["--dialect", recipe.dialect] if recipe.dialect != OWN else []
    words += ["--negative", recipe.negative_prompt] if recipe.negative_prompt else []
    for option, value in recipe.options.items():
        words += ["--set", f"{option}={option_text(value)}"]
    for switch, side in (("-W", recipe.width), ("-H", recipe.height)):
        words += [switch, f"{side}"] if side else []
    words += ["--model", Path(model).name] if model else []
    words += ["--dtype", dtype] if dtype != "float32" else []
    prompt = recipe.prompt
    words = [*words, "--", prompt] if prompt.startswith("-") else [prompt, *words]
    return shlex.join(["minisd", "explore", *words])
