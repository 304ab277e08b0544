"""`minisd.sweep`: many recipes -> pictures and a table, here, in processes, or on a cluster."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from minisd.exact_mode import is_exact
from minisd.files import check_folder
from minisd.recipes import Recipe
from minisd.recipes.metadata import Model
from minisd.stable_diffusion import StableDiffusion
from minisd.sweeps.cluster import ray_hands
from minisd.sweeps.drawing import BATCH, batches, check_names, levels_of_run, planned
from minisd.sweeps.folder import Folder
from minisd.sweeps.metrics import DEFAULTS, PREVIOUS, Metric, functions_of
from minisd.sweeps.model import Source, source_of
from minisd.sweeps.page import check_page, write_page
from minisd.sweeps.pool import cores, draw_in_pool, local_hands
from minisd.sweeps.recipe_lists import Keys, read_recipes, to_recipe
from minisd.sweeps.table import check_table, table_of, write_table
from minisd.sweeps.work import Outcome, Setup, Task, Worker

Recipes = str | Path | Iterable[Recipe | Mapping[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """What a sweep gives: where the table is, and the rows of its recipes, in their order."""

    table: Path
    rows: list[dict[str, Any]]

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows that have an error."""
        return [row for row in self.rows if row.get("error")]


def sweep(
    recipes: Recipes,
    sd_or_path: StableDiffusion | str | Path | None,
    folder: str | Path,
    *,
    workers: int | None = None,
    metrics: Sequence[str | Metric] = DEFAULTS,
    batch: int | None = None,
    shard: tuple[int, int] = (1, 1),
    ray: str | None = None,
    pictures: bool = True,
    latents: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Sweep:
    """Draw all recipes into a folder, a row of its table each. Rows that are there are kept.

    recipes   Recipes, or mappings of their fields, or a .jsonl or .csv file of them
    sd_or_path  a loaded model; or a checkpoint's path, None for minisd's own weights, or
              FILE.py:FUNCTION that makes the model: then each worker loads it
    workers   processes of this machine (1: this process); with `ray`, actors (None: all there
              is room for)
    metrics   names of minisd.sweeps.metrics.METRICS, `to_previous`, FILE.py:FUNCTION, functions
    batch     pictures that a worker draws at the same time; None: 16 of 64x64 pixels, fewer of
              larger ones
    shard     (k, n): only every n-th row, from the k-th on, counted from 1
    ray       the address of a Ray cluster; "local" starts one on this machine
    latents   also keep the final latents; pictures=False keeps the table only
    progress  a function that is called with the rows finished and the rows asked for

    A row that cannot be drawn has its error; the next call tries it again. Within `minisd.exact()`
    the workers compute exactly. Raises ValueError for a wrong recipe, before anything is drawn, and
    OSError for files that cannot be read or written.
    """
    if isinstance(sd_or_path, str | Path) or sd_or_path is None:
        source, model = Source(None if sd_or_path is None else str(sd_or_path)), None
        facts = source.facts()
    else:
        sd = sd_or_path
        (source, facts), model = source_of(sd), lambda: sd
    order = Order(source, facts, workers, tuple(metrics), batch, shard, ray, pictures, latents)
    return order.draw(list_of(recipes), Path(folder), model, progress)


def list_of(recipes: Recipes) -> list[Recipe]:
    """Raises ValueError, OSError."""
    if isinstance(recipes, str | Path):
        return read_recipes(recipes)
    return [
        to_recipe(each, f"recipe {i}") if isinstance(each, Mapping) else each
        for i, each in enumerate(recipes, 1)
    ]


@dataclass(frozen=True)
class Order:
    """How a sweep is drawn. The fields are the arguments of `sweep`."""

    source: Source | None
    facts: Model
    workers: int | None = None
    metrics: Sequence[str | Metric] = DEFAULTS
    batch: int | None = None
    shard: tuple[int, int] = (1, 1)
    ray: str | None = None
    pictures: bool = True
    latents: bool = False
    refuse: bool = True

    def __post_init__(self) -> None:
        for name in ("workers", "batch"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be 1 or more, not {number}")
        k, n = self.shard
        if not 1 <= k <= n:
            raise ValueError(f"the shard {k}/{n} is not between 1/{n} and {n}/{n}")

    @property
    def is_here(self) -> bool:
        return self.ray is None and self.workers in (None, 1)

    def settings(self) -> dict[str, Any]:
        """What all rows of a folder share, as JSON has it."""
        facts = self.facts
        return {
            "checkpoint": facts.sha256,
            "vae": facts.vae_sha256,
            "ema": facts.ema,
            "prediction": facts.prediction,
            "dtype": facts.dtype,
            "minisd": facts.version,
            "exact": is_exact(),
            "metrics": [
                *functions_of(self.metrics),
                *(name for name in self.metrics if name == PREVIOUS),
            ],
            "pictures": self.pictures,
            "latents": self.latents,
        }

    def tasks(self, recipes: Sequence[Recipe], folder: Folder) -> list[Task]:
        """A task for each row of this shard, each once. Raises ValueError, OSError."""
        planned.cache_clear()  # a FILE.py may have changed
        check_names(recipes)
        keys = Keys(self.facts)
        tasks: dict[str, Task] = {}
        for recipe in recipes:
            seeds = recipe.seed if isinstance(recipe.seed, Sequence) else [recipe.seed]
            for seed in seeds:
                if seed is None and self.shard[1] > 1:
                    raise ValueError("the shards of a sweep need the same seeds: choose them")
                drawn = replace(recipe, seed=folder.seed if seed is None else seed)
                if not 0 <= drawn.seed < 2**32:
                    raise ValueError(f"seed must be between 0 and {2**32 - 1}, not {drawn.seed}")
                if drawn.mask is not None and drawn.image is None:
                    raise ValueError(f"the mask {drawn.mask} needs an init image")
                levels_of_run(drawn)  # raises ValueError for levels that no run can use
                key = keys.key(drawn)
                tasks.setdefault(key, Task(key, drawn))
        k, n = self.shard
        return list(tasks.values())[k - 1 :: n]

    def draw(
        self,
        recipes: Sequence[Recipe],
        path: Path,
        model: Callable[[], StableDiffusion] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sweep:
        """Raises as `sweep` does. model: what gives it to this process; None: the source does."""
        if not recipes:
            raise ValueError("there are no recipes to draw")
        path = check_folder(path)
        folder = Folder(path, self.settings())
        check_table(path)
        check_page(path)
        tasks = self.tasks(recipes, folder)
        with folder:
            done = folder.finished()
            missing = [task for task in tasks if task.key not in done]
            folder.check_pictures(missing)
            count = len(tasks) - len(missing)
            if progress:
                progress(count, len(tasks))
            with closing(self.outcomes(missing, model)) as parts:  # ends the workers on an error
                for outcomes in parts:
                    folder.write(outcomes)
                    count += len(outcomes)
                    if progress:
                        progress(count, len(tasks))
            columns, rows = table_of(path, folder.notes)
            table = write_table(columns, rows, path)
            if not all(row.get("error") for row in rows):
                write_page(columns, rows, path)
        row_of = {row["key"]: row for row in rows}
        return Sweep(table, [row_of[task.key] for task in tasks])

    def outcomes(
        self, tasks: Sequence[Task], model: Callable[[], StableDiffusion] | None
    ) -> Iterator[list[Outcome]]:
        """The rows, a batch at a time. Each distinct warning of the workers is given once."""
        if not tasks:
            return
        warned: set[str] = set()
        for outcomes in self.drawn(tasks, model):
            for note in [note for outcome in outcomes for note in outcome.notes]:
                if note not in warned:
                    warned.add(note)
                    warnings.warn(note, stacklevel=2)
            yield outcomes

    def drawn(
        self, tasks: Sequence[Task], model: Callable[[], StableDiffusion] | None
    ) -> Iterator[list[Outcome]]:
        setup = Setup(
            self.source,
            self.facts,
            self.metrics,
            is_exact(),
            self.refuse,
            self.pictures,
            self.latents,
            self.batch,
        )
        if self.is_here:
            worker = Worker(setup, model() if model else None)
            size = max(1, BATCH * 64 * 64 // worker.sd.native_size**2)
            yield from map(worker.draw, self.work(tasks, size))
            return
        if self.source is None:
            problem = "the model in memory is not the one in its file"
            raise ValueError(
                f"{problem}: for several workers, name a FILE.py:FUNCTION that makes it"
            )
        for metric in self.metrics:
            if getattr(metric, "__module__", "") == "__main__":
                name = getattr(metric, "__name__", metric)
                raise ValueError(f"for several workers, name the metric {name} as FILE.py:FUNCTION")
        # The pictures of an unknown checkpoint are large: each is drawn alone, by several cores.
        is_small = self.source.path is None or self.source.is_function
        if self.ray is not None:
            hands = ray_hands(setup, self.ray, self.workers, 1 if is_small else min(4, cores()))
        else:
            hands = local_hands(setup, min(self.workers or 1, len(tasks)))
        yield from draw_in_pool(hands, self.work(tasks, BATCH if is_small else 1))

    def work(self, tasks: Sequence[Task], size: int) -> Iterator[list[Task]]:
        """The tasks in batches; size: the usual one."""
        for numbers in batches([task.recipe for task in tasks], self.batch or size):
            yield [tasks[i] for i in numbers]
