"""From requests to pictures in a folder."""

import json
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from minisd import fast
from minisd.checkpoint import load
from minisd.checkpoint.folder import main_file
from minisd.checkpoint.load import check_device
from minisd.checkpoint.v_prediction import VPredictionUNet
from minisd.cli.messages import in_words, visible
from minisd.cli.model_files import find_model, find_vae
from minisd.cli.switches import Request
from minisd.exact_mode import is_exact
from minisd.fast.shortage import memory_for
from minisd.figures.contact_sheet import grid
from minisd.files import (
    append_line,
    check_folder,
    next_number,
    numbered,
    open_folder,
    png_bytes,
    sha256,
    write_first,
)
from minisd.observe.finite import stop_at_nan
from minisd.observe.ledger import Ledger
from minisd.observe.plan import plan, steps_after
from minisd.observe.watch import together
from minisd.proof.record import KEY, enclosures, record_of
from minisd.recipes import DIALECTS, Job, Recipe, prepare, read_recipe
from minisd.recipes.metadata import Model, read_model, texts
from minisd.recipes.recipe import name_of
from minisd.recipes.variations import seed_chain
from minisd.run import Event, Observer, Result
from minisd.samplers import Step
from minisd.schedule import sigma_to_t, start_index
from minisd.stable_diffusion import StableDiffusion

LOG = "minisd_log.txt"


def load_model(args: Any) -> StableDiffusion:
    """The model that the switches of add_model_switches choose, set up for speed."""
    device, dtype = args.device or ("cuda" if torch.cuda.is_available() else "cpu"), args.dtype
    drawn_with = read_model(args.from_picture) if getattr(args, "from_picture", None) else Model()
    path, vae = find_model(args.model), find_vae(args.vae, drawn_with)
    check_device(device, "--device")
    if is_exact() and dtype != "float32":
        raise ValueError(f"--exact is for --dtype float32, not {dtype}")
    if is_exact() and args.engine != "torch":
        raise ValueError(f"--exact is for --engine torch, not {args.engine}")
    remedy = "--dtype bfloat16 needs half as much" if dtype == "float32" else "close other programs"
    with memory_for(f"to load {path or 'the model'} as {dtype}", remedy):
        sd = load(
            path,
            device=device,
            dtype=getattr(torch, dtype),
            vae=vae,
            ema=drawn_with.ema if args.ema is None else args.ema,
            prediction=args.prediction or drawn_with.prediction or None,
        )
        fast.tune(sd, args.engine, lambda line: tqdm.write(line, file=sys.stderr))
    if sd.device.type == "cpu" and not fast.can_pack(sd):
        slow = f"this processor has no instructions for {dtype}"
        warnings.warn(f"{slow}: --dtype float32 is many times faster", stacklevel=2)
    files = sd.path.name + (f" with the autoencoder {vae.name}" if vae else "")
    files += " with its training averages" if sd.ema else ""
    engine = "" if args.engine == "torch" else f", by {args.engine}"
    print(f"model: {sd.name} ({files}), {dtype} on {sd.device}{engine}")
    return sd


class Studio:
    """A model, loaded when it is first needed, and the pictures that were drawn with it."""

    def __init__(self, args: Any):
        """args: a namespace with what add_model_switches adds."""
        self.args, self.dtype = args, args.dtype
        self.paths: list[Path] = []
        self.seeds: list[int] = []
        self.init_hashes: dict[str, str | None] = {}  # SHA-256 by the name of the file

    @cached_property
    def sd(self) -> StableDiffusion:
        return load_model(self.args)

    @cached_property
    def hashes(self) -> Future[tuple[str, str]]:
        """The SHA-256 of the checkpoint and of the other autoencoder, if there is one.

        They are computed in the background: a large file takes seconds.
        """
        path, vae = self.sd.path, self.sd.vae_path

        def compute() -> tuple[str, str]:
            return sha256(main_file(path)), sha256(main_file(vae, "vae")) if vae else ""

        pool = ThreadPoolExecutor(1)
        future = pool.submit(compute)
        pool.shutdown(wait=False)
        return future

    def prepare(self, recipe: Recipe) -> Job:
        """Check the recipe's names before the model is loaded, then get it ready to draw."""
        recipe.functions()
        for path in (recipe.image, recipe.mask):
            if path is not None and not Path(path).exists():
                raise FileNotFoundError(f"there is no file {path}")
        sd = self.sd
        if recipe.image is not None:  # the file may change, or be removed, during the drawing
            self.init_hashes[str(recipe.image)] = hash_of_file(recipe.image)
        with memory_for(f"to open {recipe.image or 'the prompt'}", "scale the picture down first"):
            job = prepare(recipe, sd)
        if job.inpaints:
            print(job.describe_mask())
        return job

    @cached_property
    def facts(self) -> Model:
        """What pictures say about the model. Waits for the checkpoint's hash."""
        sd = self.sd
        try:
            checkpoint, vae = self.hashes.result()
        except OSError as error:
            warnings.warn(f"pictures will not name the checkpoint: {in_words(error)}", stacklevel=2)
            checkpoint = vae = ""
        return Model(
            sd.name,
            checkpoint,
            self.dtype,
            version("minisd"),
            vae=sd.vae_path.name if sd.vae_path else "",
            vae_sha256=vae,
            ema=sd.ema,
            prediction="v" if isinstance(sd.unet, VPredictionUNet) else self.args.prediction or "",
        )

    def texts(self, recipe: Recipe, size: tuple[int, int]) -> dict[str, str]:
        """The text chunks of this recipe's picture; size: width and height in pixels."""
        image = None if recipe.image is None else str(recipe.image)
        if image is not None and image not in self.init_hashes:  # a picture that was just written
            self.init_hashes[image] = hash_of_file(image)
        return texts(recipe, size, self.facts, self.init_hashes.get(image or ""))

    def draw(self, job: Job, *observers: Observer, label: str = "", refuse: bool = True) -> Result:
        """Run a job, with a progress bar and a ledger whose line is printed."""
        ledger = Ledger(job.sd, refuse, spoken=DIALECTS[job.recipe.dialect] is not None)
        with memory_to_draw(job), Progress(job, label) as bar, ledger:
            result = job.draw(together(stop_at_nan(job.sd), bar, ledger, *observers))
        print(ledger.line())
        return result

    # ---- a request -------------------------------------------------------------------------------

    def make(self, request: Request) -> list[Path]:
        """Draw what a line asks for, and write it. Returns the files, in order."""
        request = self.resolve(request)
        folder = check_folder(request.outdir)
        job = self.prepare(request.recipe)
        open_folder(folder)
        self.hashes  # noqa: B018 (starts now, and is ready when the picture is)
        print(describe_steps(replace(job.recipe, schedule=job.schedule)))
        first_number, images, paths = next_number(folder), [], []

        def draw(
            job: Job, number: int | None, label: str
        ) -> list[tuple[Image.Image, Path, Recipe]]:
            """Draw and write a job. The number goes into the file's name; None: the seed does."""
            result = self.draw(job, label=label, refuse=not request.wrong_anyway)
            drawn = []
            for image, seed in zip(result.images, result.seeds, strict=True):
                recipe = replace(job.recipe, seed=seed)
                names = numbered(folder, first_number, f"{seed if number is None else number}.png")
                record = self.record(job, recipe, image)
                enclosed = enclosures(recipe) if request.self_contained else {}
                path = self.save(image, recipe, names, f"[{label or 1}]", record, enclosed)
                images.append(image)
                paths.append(path)
                drawn.append((image, path, recipe))
            return drawn

        jobs = series(job, request)
        for i, (one_job, number) in enumerate(jobs, 1):
            label = f"{i}/{len(jobs)}" if len(jobs) > 1 else ""
            drawn = draw(one_job, number, label)
            self.seeds += [recipe.seed for _, _, recipe in drawn]
            for image, path, recipe in drawn if request.variants else []:
                for k, seed in enumerate(seed_chain(recipe.seed, request.variants + 1)[1:], 1):
                    variant = replace(recipe, image=str(path), seed=seed, variations=(), fit=False)
                    if one_job.inpaints:  # a mask from the init image's own transparency stays too
                        variant = replace(variant, mask=recipe.mask or recipe.image)
                    next_job = replace(one_job, recipe=variant, image=image)
                    draw(next_job, None, f"variant {k}")
        if request.grid and len(images) > 1:
            recipe, number = jobs[0][0].recipe, jobs[0][1]
            if isinstance(recipe.seed, list):
                recipe = replace(recipe, seed=recipe.seed[0])
            names = numbered(folder, first_number, f"{number or recipe.seed}.grid.png")
            paths.append(self.save(grid(images), recipe, names, "[grid]"))
        return paths

    def resolve(self, request: Request) -> Request:
        """The request with its references to earlier pictures looked up."""
        recipe = request.recipe
        if isinstance(recipe.seed, int) and recipe.seed < 0:
            recipe = replace(recipe, seed=nth_last(self.seeds, recipe.seed, "-S"))
        for switch, name in (("-I", "image"), ("-M", "mask")):
            file = getattr(recipe, name)
            if file and re.fullmatch(r"-\d+", str(file)):
                recipe = replace(recipe, **{name: str(nth_last(self.paths, int(file), switch))})
            elif file and not Path(file).exists() and (Path(request.outdir) / file).exists():
                recipe = replace(recipe, **{name: str(Path(request.outdir) / file)})
        if "prompt" not in request.typed and not recipe.prompt and recipe.image:
            try:
                recipe = replace(recipe, prompt=read_recipe(Path(recipe.image)).prompt)
            except ValueError:
                pass  # the picture holds no prompt; the error below says what to do
        if not recipe.prompt and "prompt" not in request.typed:
            raise ValueError('say what to draw, as in: minisd img2img "a fire" -I drawing.png')
        if recipe.variations and recipe.seed is None:
            raise ValueError("-V moves the noise of a seed: choose the seed with -S")
        if recipe.mask and not recipe.image:
            raise ValueError("-M is a mask for an init image: choose the image with -I")
        if request.batch > 1 and request.variation_amount:
            raise ValueError("--batch draws pictures that differ in the seed alone: leave -v out")
        if request.steps_after and DIALECTS[recipe.dialect]:
            raise ValueError("--steps-after is for minisd's own rule, not for a dialect: use -s")
        if request.steps_after and recipe.image:
            recipe = replace(recipe, steps=steps_after(request.steps_after, recipe.strength))
            asked = f"--steps-after {request.steps_after} at strength {recipe.strength:g}"
            print(f"{asked}: -s {recipe.steps}")
        return replace(request, recipe=recipe)

    def record(self, job: Job, recipe: Recipe, image: Image.Image | None = None) -> dict[str, str]:
        """The text chunk that says what drew the picture, down to the machine."""
        init_file = self.init_hashes.get(f"{recipe.image or ''}")
        return {KEY: json.dumps(record_of(job, recipe, self.facts, image, init_file))}

    def save(
        self,
        image: Image.Image,
        recipe: Recipe,
        names: Iterator[Path],
        label: str,
        record: Mapping[str, str] | None = None,
        enclosed: Mapping[bytes, bytes] | None = None,
    ) -> Path:
        """Write a picture with its recipe inside, and a line in the folder's log.

        The picture gets the first name that is free.
        """
        chunks = self.texts(recipe, image.size) | dict(record or {})
        path = write_first(names, png_bytes(image, chunks, chunks=enclosed))
        self.paths.append(path)
        line = visible(f"{path}: {chunks['Dream']}")
        try:
            append_line(path.with_name(LOG), line)
        except OSError as error:
            warnings.warn(f"the log has no line for this picture: {in_words(error)}", stacklevel=2)
        print(f"{label} {path if label == '[grid]' else line}")
        return path


def hash_of_file(path: str | Path) -> str | None:
    """SHA-256 in hexadecimal; None for what can be read only once: a pipe, or standard input."""
    if not Path(path).is_file() or str(path).startswith("/dev/"):
        return None
    return sha256(path)


def seeds_of(recipe: Recipe, n: int) -> list[int]:
    """The recipe's seed and the n - 1 seeds after it, as minisd or the dialect counts them."""
    dialect = DIALECTS[recipe.dialect]
    if dialect is None:
        return seed_chain(recipe.seed, n)
    seeds = [recipe.seed]
    while len(seeds) < n:
        seeds.append(dialect.next_seed(seeds[-1]) % 2**32)
    return seeds


def series(job: Job, request: Request) -> list[tuple[Job, int | None]]:
    """The jobs of -n and -v, each with the number for its file's name (None: its seed)."""
    recipe, amount = job.recipe, request.variation_amount
    if isinstance(recipe.seed, Sequence):
        return [(job, None)]
    jobs: list[tuple[Job, int | None]] = []
    if amount == 0:
        seeds = seeds_of(recipe, request.iterations)
        for i in range(0, len(seeds), request.batch):
            part = seeds[i : i + request.batch]
            seed = part if len(part) > 1 else part[0]
            jobs.append((replace(job, recipe=replace(recipe, seed=seed)), None))
        return jobs
    for other in seeds_of(recipe, request.iterations + 1)[1:]:
        varied = replace(recipe, variations=(*recipe.variations, (other, amount)))
        jobs.append((replace(job, recipe=varied), other))
    return jobs


def memory_to_draw(job: Job) -> AbstractContextManager[None]:
    """Within the block, running out of memory raises MemoryError that says what helps."""
    width, height = job.size
    seeds = job.recipe.seed
    number = len(seeds) if isinstance(seeds, Sequence) else 1
    pictures = f"{width}x{height} pixels" if number == 1 else f"{number} pictures {width}x{height}"
    remedy = "take a smaller -W and -H" if job.image is None else "scale it down with --fit"
    if number > 1:
        remedy = "draw fewer at the same time"
    return memory_for(f"to draw {pictures}", f"{remedy}; --dtype bfloat16 needs less, too")


def nth_last(items: Sequence[Any], n: int, switch: str) -> Any:
    """The n-th last item: -1 is the last one."""
    if n < 0 and -n <= len(items):
        return items[n]
    noun = "seed" if switch == "-S" else "picture"
    remedy = " (leave -S out for a new seed)" if switch == "-S" else ""
    if items:
        raise ValueError(f"{switch} {n}: there are only {len(items)} {noun}s so far{remedy}")
    raise ValueError(f"{switch} {n} means an earlier {noun}, but none was made yet{remedy}")


def describe_steps(recipe: Recipe) -> str:
    """A line with the settings that decide how much noise is added."""
    if dialect := DIALECTS[recipe.dialect]:
        return dialect.summary(recipe)
    strength = recipe.strength if recipe.image else 1
    here = plan(recipe.steps, strength, recipe.sampler, recipe.schedule)
    counts = f"{here.steps_asked} steps asked, {here.steps_run} run, {here.steps_skipped} skipped"
    names = f"{name_of(recipe.sampler)} on the {name_of(here.schedule)} schedule"
    if not here.steps_run:
        return f"{counts}; {names}; no noise is added: the picture is encoded and decoded"
    t = getattr(recipe.schedule, "sigma_to_t", sigma_to_t)(here.sigma)
    return f"{counts}; {names}; the noise added has sigma {here.sigma:.4f} (t = {t:.1f})"


class Progress:
    """An observer: a bar over the steps that are run. Silent where the output is not a terminal."""

    def __init__(self, job: Job, label: str):
        recipe = job.recipe
        start = 0 if job.image is None else start_index(recipe.steps, recipe.strength)
        if dialect := DIALECTS[recipe.dialect]:
            start = recipe.steps + 1 - len(dialect.sigmas(recipe))
        title = f"{label or 'drawing'}, seed {recipe.seed}"
        self.bar = tqdm(
            total=recipe.steps - start, desc=title, disable=None, leave=False, file=sys.stderr
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self.bar.update()
