"""A worker: it has a model, and turns recipes into rows and pictures. It writes nothing.

The same class works in this process, in processes of this machine and on a Ray cluster. A row does
not depend on where it was drawn, nor on which other rows were drawn with it.
"""

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from minisd import fast
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.exact_mode import exact
from minisd.fast.shortage import is_out_of_memory
from minisd.files import png_bytes
from minisd.proof.record import KEY, picture_hash, record_of
from minisd.recipes import Job, Recipe, prepare
from minisd.recipes.metadata import Model, texts
from minisd.run import Result
from minisd.stable_diffusion import StableDiffusion
from minisd.sweeps.drawing import BATCH, draw_measured, encoded_image, file_name, levels_of_run
from minisd.sweeps.metrics import Drawn, Metric, functions_of
from minisd.sweeps.model import Source
from minisd.sweeps.recipe_lists import sha256_of, values_of

PICTURES, LATENTS = "pictures", "latents"  # folders inside the sweep's
ROW_KEY = "minisd-sweep"  # the text chunk of a picture that holds its row's key
MOST_PREPARED = 64  # prompts and init images that a worker keeps
# What only a job's drawing uses: recipes that differ in nothing else share text and init image.
OF_DRAWING = {"strength": 0.75, "steps": 1, "sampler": "k_euler", "seed": 0}
OF_OWN_DRAWING = {"guidance": 1.0, "guidance_rule": None, "variations": (), "options": {}}


@dataclass(frozen=True)
class Setup:
    """What all workers of a sweep need to know. It can be sent to other processes."""

    source: Source | None
    facts: Model
    metrics: Sequence[str | Metric] = ()
    exact: bool = False
    refuse: bool = True  # stop a run whose noise is not what the network expects
    pictures: bool = True
    latents: bool = False
    batch: int | None = None  # pictures at the same time; None: by their size
    threads: int | None = None


class Task(NamedTuple):
    key: str
    recipe: Recipe


def picture_file(task: Task) -> str:
    """The place of the row's picture, inside the sweep's folder."""
    stem = file_name(task.recipe).removesuffix(".png")
    return f"{PICTURES}/{stem}-{task.key[:12]}.png"


@dataclass
class Outcome:
    """A row, with what belongs in files beside the table."""

    row: dict[str, Any]
    picture: bytes | None = None  # a PNG file
    latent: bytes | None = None  # a safetensors file
    notes: list[str] = field(default_factory=list)  # warnings of the drawing


class Worker:
    """It has the model in memory. Raises ValueError or OSError if that cannot be loaded."""

    def __init__(self, setup: Setup, sd: StableDiffusion | None = None):
        if setup.threads:
            torch.set_num_threads(setup.threads)
        self.setup = setup
        self.metrics = functions_of(setup.metrics)
        with self.arithmetic():
            if sd is None:
                assert setup.source is not None
                sd = setup.source.load()
                if not setup.source.is_function:
                    fast.tune(sd)
        self.sd = sd
        prediction = "v" if isinstance(sd.unet, VPredictionUNet) else setup.facts.prediction
        name = getattr(sd, "name", "")
        self.facts = setup.facts._replace(name=name, prediction=prediction)
        self.prepared: dict[str, tuple[Job, Any, str | None]] = {}

    def arithmetic(self) -> Any:
        return exact() if self.setup.exact else nullcontext()

    def draw(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The rows of the tasks, in order. A row that cannot be drawn has its error."""
        with self.arithmetic(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            outcomes = list(self.draw_parts(tasks))
        if outcomes:
            messages = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
            outcomes[0].notes = list(dict.fromkeys(messages))
        return outcomes

    def draw_parts(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Draw as many at the same time as their size allows; after an error, each alone."""
        i = 0
        while i < len(tasks):
            try:
                width, height = self.job_of(tasks[i].recipe)[0].size
            except Exception as error:
                yield self.failed(tasks[i], error)
                i += 1
                continue
            number = self.setup.batch or max(1, BATCH * 64 * 64 // (width * height))
            part = tasks[i : i + number]
            try:
                yield from self.draw_part(part)
            except Exception as error:
                if len(part) == 1:
                    yield self.failed(part[0], error)
                else:
                    for task in part:
                        yield from self.draw_alone(task)
            i += number

    def draw_alone(self, task: Task) -> list[Outcome]:
        try:
            return self.draw_part([task])
        except Exception as error:
            return [self.failed(task, error)]

    def draw_part(self, tasks: Sequence[Task]) -> list[Outcome]:
        begin = time.perf_counter()
        prepared = [self.job_of(task.recipe) for task in tasks]
        jobs = [replace(job, image=latent) for job, latent, _ in prepared]
        results = draw_measured(jobs, self.setup.refuse)
        outcomes = [
            self.outcome(task, job, *result, init_file, len(tasks))
            for task, (job, _, init_file), result in zip(tasks, prepared, results, strict=True)
        ]
        seconds = (time.perf_counter() - begin) / len(tasks)
        for outcome in outcomes:
            outcome.row["seconds"] = round(seconds, 4)
        return outcomes

    def job_of(self, recipe: Recipe) -> tuple[Job, Image.Image | Tensor | None, str | None]:
        """The job; its init image or the latent of it; the hash of the init image's file."""
        fixed: dict[str, Any] = OF_DRAWING | (OF_OWN_DRAWING if recipe.dialect == "minisd" else {})
        if recipe.schedule != "file" and recipe.dialect == "minisd":
            fixed = fixed | {"schedule": None}
        shared = repr([fixed.get(name, value) for name, value in values_of(recipe).items()])
        if shared not in self.prepared:
            init_file = sha256_of(str(recipe.image)) if recipe.image else None
            job = prepare(recipe, self.sd)
            if len(self.prepared) >= MOST_PREPARED:
                del self.prepared[next(iter(self.prepared))]
            self.prepared[shared] = job, encoded_image(job), init_file
        job, latent, init_file = self.prepared[shared]
        sized = replace(recipe, width=job.recipe.width, height=job.recipe.height)
        return replace(job, recipe=sized), latent, init_file

    # ---- rows ------------------------------------------------------------------------------------

    def row(self, task: Task, recipe: Recipe) -> dict[str, Any]:
        return {
            "key": task.key,
            **values_of(recipe),
            "weights": self.facts.sha256,
            "minisd": self.facts.version,
            "dtype": self.facts.dtype,
            "exact": self.setup.exact,
            "device": str(self.sd.device),
        }

    def outcome(
        self, task: Task, job: Job, result: Result, calls: int, init_file: str | None, together: int
    ) -> Outcome:
        setup, recipe, image = self.setup, job.recipe, result.image
        sigmas, _ = levels_of_run(replace(recipe, schedule=job.schedule))
        row = self.row(task, recipe)
        row |= {"steps_run": len(sigmas) - 1, "calls": calls, "sigma": float(f"{sigmas[0]:.6g}")}
        row |= {"pixels": picture_hash(image), "latent": picture_hash(result.latent)}
        drawn = Drawn(image, result.latent, job, sigmas[0])
        for name, metric in self.metrics.items():
            try:
                value = metric(drawn)
                row[name] = None if value is None else float(f"{float(value):.6g}")
            except Exception as error:
                row["error"] = error_text(error, f"the metric {name}: ")
        outcome = Outcome(row)
        if setup.pictures:
            record = record_of(job, recipe, self.facts, image, init_file) | {"batch": together}
            chunks = texts(recipe, job.size, self.facts, init_file)
            chunks |= {KEY: json.dumps(record), ROW_KEY: task.key}
            row["file"] = picture_file(task)
            outcome.picture = png_bytes(image, chunks)
        if setup.latents:
            latent = result.latent.detach().cpu().contiguous()
            outcome.latent = save({"latent": latent}, {ROW_KEY: task.key})
        return outcome

    def failed(self, task: Task, error: Exception) -> Outcome:
        text = error_text(error)
        if is_out_of_memory(error):
            try:
                width, height = self.job_of(task.recipe)[0].size
                size = f"a picture of {width}x{height} pixels"
            except Exception:
                size = "the picture"
            text = f"there is not enough memory to draw {size}: scale it down"
        return Outcome(self.row(task, task.recipe) | {"error": text})


def error_text(error: BaseException, prefix: str = "") -> str:
    """In one line, with the kind of error where it is not the user's."""
    kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
    return " ".join(f"{prefix}{kind}{error}".split())[:400]
