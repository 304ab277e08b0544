"""A recipe -> settings with which another program draws the same levels and the same noise.

Both programs' courses are computed and compared (course.py). What the other program cannot do is
said in a note. Weights of words, the encoder's noise and rounding act differently everywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from inspect import signature
from itertools import product
from typing import Any

import torch
from torch import Tensor

from minisd.dialects import a1111, comfyui, diffusers, invokeai
from minisd.dialects.course import Course, Draws
from minisd.dialects.drawing import Program
from minisd.dialects.forms import as_a1111, as_comfyui, as_diffusers, as_invokeai, in_syntax
from minisd.prompts.syntax import parse
from minisd.recipes.recipe import OWN, Recipe, name_of
from minisd.run import remaining
from minisd.schedule import levels_of, sigma_to_t

TARGETS: dict[str, Program] = {
    "a1111": a1111.PROGRAM,
    "comfyui": comfyui.PROGRAM,
    "diffusers": diffusers.PROGRAM,
    "invokeai": invokeai.PROGRAMS["invokeai-2.2"],
}
# Options of a target that are tried, so that its course becomes the same.
TRIED: dict[str, dict[str, tuple[Any, ...]]] = {
    "a1111": {
        "noise_source": ("CPU", "NV", "GPU"),
        "quantize": (False, True),
        "sgm_noise": (False, True),
    },
    "comfyui": {"era": comfyui.ERAS, "noise_source": ("CPU", "GPU")},
    "diffusers": {"noise_source": ("CPU", "GPU"), "spacing": (None, "leading", "linspace")},
    "invokeai": {"noise_source": ("CPU", "GPU"), "era": ("2.2.5", "2.1")},
}
LEVEL_OPTIONS = ("spacing",)  # those of them that change the levels
# Options that mean the same in the dialects that have them.
SHARED = ("eta", "solver", "batch", "card")
CLOSE = 1e-4  # relative: the programs' own tables differ by 1.3e-5


@dataclass(frozen=True)
class Translation:
    recipe: Recipe  # in the target's dialect
    text: str  # as the target takes it
    notes: list[str]  # what is not the same


def translate(
    recipe: Recipe, target: str, programs: dict[str, Program], side: int = 512
) -> Translation:
    """Raises ValueError if the target has no such sampler, or for a name that is not in TARGETS.

    side: pixels, where the recipe has no width and height
    """
    if target not in TARGETS:
        raise ValueError(f"there is no target {target!r}; choose from {', '.join(TARGETS)}")
    if not isinstance(recipe.seed, int) or not isinstance(recipe.guidance, int | float):
        raise ValueError("a recipe to translate needs one seed, and a number as guidance")
    program = TARGETS[target]
    has_image = recipe.image is not None
    source = own_course(recipe) if recipe.dialect == OWN else None
    source = source or programs[recipe.dialect].course(recipe, has_image)
    if recipe.sampler not in {*program.samplers.values(), "dpmpp_2m"}:
        name = name_of(recipe.sampler)
        raise ValueError(f"{program.title} has no sampler like {name}: there is no equivalent")
    same = [(recipe, source)] if recipe.dialect == program.name else None
    best = min(
        same or candidates(recipe, program, target, source),
        key=lambda pair: len(differences(source, pair[1], pair[0])),
        default=None,
    )
    if best is None:
        raise ValueError(f"{program.title} cannot run these settings")
    translated, course = best
    notes = differences(source, course, translated)
    tried = {*SHARED, *TRIED[target], "ensd", "noise_source", "era"}
    lost = {k: v for k, v in recipe.options.items() if k not in tried and same is None}
    if lost:
        listed = ", ".join(f"{key}={value!r}" for key, value in lost.items())
        notes.append(f"these options have no equivalent, or are in what differs: {listed}")
    prompt, prompt_notes = in_syntax(recipe, recipe.prompt, target)
    negative = recipe.negative_prompt
    if recipe.dialect == OWN and "[" in recipe.prompt:
        words = parse(recipe.prompt).negative
        negative = ", ".join(filter(None, (words, negative)))
    negative, negative_notes = in_syntax(recipe, negative, target, negative=True)
    translated = replace(translated, prompt=prompt.strip(), negative_prompt=negative.strip())
    notes += dict.fromkeys([*prompt_notes, *negative_notes])
    size = (recipe.width or side, recipe.height or side)
    if has_image:
        notes.append("the init image's file is not in the text: give the same one")
    writer = {"a1111": as_a1111, "comfyui": as_comfyui, "diffusers": as_diffusers}
    text, more = writer.get(target, as_invokeai)(translated, size)
    return Translation(translated, text, [*notes, *more])


def own_course(recipe: Recipe) -> Course:
    """minisd's own rules as a course."""
    sampler, schedule, _ = recipe.functions()
    strength = recipe.strength if recipe.image is not None else 1.0
    sigmas = remaining(schedule, recipe.steps, strength)
    return Course(
        levels_of(schedule, recipe.steps), sigmas, sampler, sigma_to_t, Draws(),
        inserted=sigmas[0], scaled_back=True,
    )  # fmt: skip


# ---- the search ----------------------------------------------------------------------------------


def candidates(
    recipe: Recipe, program: Program, target: str, source: Course
) -> Iterator[tuple[Recipe, Course]]:
    """Recipes of the target whose levels are the source's; if none are, the recipe itself."""
    has_image = recipe.image is not None
    base = replace(recipe, dialect=program.name, options={}, mask=None)
    base = replace(base, variations=recipe.variations if program.varied else ())
    kept = {k: v for k, v in recipe.options.items() if k in SHARED and k in program.options}
    choices = TRIED[target] | (ensd_choices(source) if target == "a1111" else {})
    of_levels = {key: values for key, values in choices.items() if key in LEVEL_OPTIONS}
    others = {key: values for key, values in choices.items() if key not in LEVEL_OPTIONS}

    def attempt(options: dict[str, Any], **shape: Any) -> tuple[Recipe, Course] | None:
        chosen = {k: v for k, v in options.items() if v != program.options[k].default}
        tried = replace(base, options=kept | chosen, **shape)
        try:
            return tried, program.course(tried, has_image)
        except ValueError:
            return None

    first = None
    for n, schedule in grids(recipe, program, source):
        for level_options in combinations_of(of_levels):
            shape = {"steps": n, "strength": recipe.strength, "schedule": schedule}
            pair = attempt(level_options, **shape)
            first = first or pair
            if pair is None or not any(close([s], source.sigmas[:1]) for s in pair[1].levels):
                continue
            for steps, strength in starts(recipe, len(source.sigmas) - 1, n):
                shape |= {"steps": steps, "strength": strength}
                pair = attempt(level_options, **shape)
                if pair is None or not close(pair[1].sigmas, source.sigmas):
                    continue
                pairs = (attempt(level_options | more, **shape) for more in combinations_of(others))
                yield from (pair for pair in pairs if pair is not None)
                return
    if first is not None:
        yield first


def combinations_of(choices: dict[str, tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(choices, values)) for values in product(*choices.values())]


def ensd_choices(source: Course) -> dict[str, tuple[Any, ...]]:
    step_seed = source.draws.step_seed
    return {"ensd": (0, step_seed(0)) if step_seed and step_seed(0) else (0,)}


def grids(recipe: Recipe, program: Program, source: Course) -> Iterator[tuple[int, str | None]]:
    """(steps, schedule) of whole lists to try, the recipe's own first."""
    run = max(1, len(source.sigmas) - 1)
    own = name_of(recipe.schedule) if recipe.schedule else None
    schedules = list(dict.fromkeys([own, None, *program.schedules]))
    schedules = [name for name in schedules if name is None or name in program.schedules]
    counts = [recipe.steps, len(source.levels) - 1, run, run + 1]
    if recipe.image is not None:
        counts += range(run, min(60, 4 * run))
    yield from product(dict.fromkeys(counts), schedules)


def starts(recipe: Recipe, run: int, n: int) -> Iterator[tuple[int, float]]:
    """(steps, strength) with which a program may run the last `run` of n steps.

    Most run int(f n) of them, one more, or one fewer; ComfyUI's steps are those run, of
    int(steps / f).
    """
    if recipe.image is None:
        yield n, recipe.strength
        return
    shares = [recipe.strength, (run - 0.5) / n, (run + 0.5) / n, (run + 1.5) / n]
    for f in dict.fromkeys(round(f, 2 if n < 50 else 4) for f in shares):
        if 0 < f <= 1:
            yield n, f
    for f in dict.fromkeys((recipe.strength, round(run / n, 2), round(run / (n + 0.5), 4))):
        if 0 < f <= 1:
            yield run, f


def close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= CLOSE * max(abs(x), abs(y)) for x, y in zip(a, b))


# ---- what differs --------------------------------------------------------------------------------


def differences(source: Course, other: Course, recipe: Recipe) -> list[str]:
    """What the other course does differently, in words. An empty list: the same run."""
    notes = []
    if not close(source.sigmas, other.sigmas):
        lists = f"{numbers(source.sigmas)} here, {numbers(other.sigmas)} there"
        notes.append(f"the noise levels have no equivalent: {lists}")
        return notes
    gains = (source.image_gain, source.gain), (other.image_gain, other.gain)
    if recipe.image is None:
        gains = (0.0, source.gain), (0.0, other.gain)
    if not close(list(gains[0]), list(gains[1])):
        formulas = " here, ".join(f"x = {a:.6g} x0 + {b:.6g} noise" for a, b in gains)
        notes.append(f"the start has no equivalent: {formulas} there")
    a, b = source.draws, other.draws
    if stream_of(a) != stream_of(b) or a.before != b.before:
        who = f"draw {a.before + 1} of {a.source} here, draw {b.before + 1} of {b.source} there"
        notes.append(f"the noise has no equivalent: {who}")
    if draws_noise(source) and step_stream(a) != step_stream(b):
        notes.append("the steps' fresh noise has no equivalent: other draws, or another seed")
    expected_t = [(source.timestep(s), other.timestep(t)) for s, t in calls_of(source, other)]
    worst = max((abs(x - y) for x, y in expected_t), default=0.0)
    if worst > 0.01:
        notes.append(f"the network gets other timesteps, by up to {worst:.2f}")
    change = solvers_differ(source, other)
    if change > CLOSE:
        notes.append(f"the sampler's steps differ: by {change:.1%} of the result on a test problem")
    if recipe.image is not None and (a.posterior is None) != (b.posterior is None):
        notes.append("the encoder's noise is used on one side only: a small difference")
    for note in other.notes:
        if "encoder" in note and note not in source.notes:
            note = "the encoder adds noise that is not known: a small difference"  # noqa: PLW2901
        notes += [f"there {note}"] if note not in source.notes else []
    if source.scaled_back != other.scaled_back and source.sigmas[-1] > 0:
        notes.append("the last state is scaled differently before it is decoded")
    return notes


def solvers_differ(source: Course, other: Course) -> float:
    """How far the two samplers' results are apart, relative, on data of two points, -1 and 1."""

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        return (x - torch.tanh(x / sigma**2)) / sigma

    def result(course: Course) -> Tensor:
        x = torch.linspace(-2, 2, 16, dtype=torch.float64).reshape(1, 1, 4, 4) * source.sigmas[0]
        silent = {"generator": lambda x, sigma, sigma_next: torch.zeros_like(x)}
        takes = "generator" in signature(course.sampler).parameters
        for step in course.sampler(predict_eps, x, course.sigmas, **(silent if takes else {})):
            x = step.x_next
        return x

    if len(source.sigmas) < 2:
        return 0.0
    a, b = result(source), result(other)
    return float((a - b).abs().max() / a.abs().max())


def calls_of(source: Course, other: Course) -> Iterator[tuple[float, float]]:
    yield from zip(source.sigmas[:-1], other.sigmas[:-1])


def numbers(values: list[float]) -> str:
    words = [f"{value:.4g}" for value in values]
    return " ".join(words if len(words) < 9 else [*words[:5], "...", *words[-2:]])


def stream_of(draws: Draws) -> str:
    """NV is a GPU's generator, as long as the card has enough threads."""
    return "GPU" if draws.source == "NV" else draws.source


def step_stream(draws: Draws) -> tuple[Any, ...]:
    source = draws.step_source or draws.source
    source = "GPU" if source == "NV" else source
    if draws.tree is not None:
        return (source, tuple(f"{level:.3g}" for level in draws.tree))
    if draws.step_seed is not None:
        return (source, draws.step_seed(0), 0)
    return (source, 0, draws.before + 1 + draws.between)


def draws_noise(course: Course) -> bool:
    """Whether the sampler adds fresh noise."""
    parameters = signature(course.sampler).parameters
    eta = parameters["eta"].default if "eta" in parameters else None
    return "generator" in parameters and eta != 0
