"""What a program will do with a recipe, in words: for `minisd explain --dialect`."""

from inspect import signature

from minisd.dialects.course import Course, settings_of
from minisd.dialects.drawing import Program
from minisd.dialects.noise import threads_of
from minisd.observe.plan import count_calls
from minisd.recipes.recipe import Recipe, name_of, option_text


def summary(program: Program, recipe: Recipe) -> str:
    """A line: the steps, and the level of the noise that is added."""
    course = program.course(recipe, recipe.image is not None)
    name = f"{name_of(recipe.sampler)} as {program.title} has it"
    asked, run = recipe.steps, len(course.sigmas) - 1
    if run == 0:
        return f"{asked} steps asked, none run; {name}"
    start = f"sigma {course.inserted:.4f}"
    return f"{asked} steps asked, {run} run; {name}; the noise is added at {start}"


def describe(program: Program, recipe: Recipe) -> str:
    """Lines: the levels, the start, the timesteps, and which draw of which stream goes where."""
    has_image = recipe.image is not None
    course = program.course(recipe, has_image)
    sigmas = course.sigmas
    lines = [
        f"{summary(program, recipe)}",
        "",
        f"  whole list   {numbers(course.levels)}",
        f"  the run's    {numbers(sigmas)}",
    ]
    if len(sigmas) > 1:
        calls = count_calls(course.sampler, sigmas)
        expected_t = [course.timestep(sigma) for sigma in sigmas[:-1]]
        lines += [
            f"  timesteps    {numbers(expected_t, 6)}",
            f"  calls        {calls} of the network",
        ]
    lines += ["", f"  start        {start_formula(course, has_image)}"]
    if course.scaled_back:
        lines.append("  end          x / sqrt(1 + sigma^2) of the last level is decoded")
    rounding = "rounded" if program.rounded else "truncated"
    lines += [f"  8 bits       {rounding}", ""]
    lines += [f"  {line}" for line in draws_in_words(course, recipe, has_image)]
    lines += [f"  note         {note}" for note in course.notes]
    lines += ["", "  options of the dialect, for --set:"]
    for name, value in settings_of(recipe, program.options).items():
        setting = f"{name}={option_text(value)}"
        lines.append(f"    {setting:28} {program.options[name].help}")
    return "\n".join(lines)


def numbers(values: list[float], digits: int = 5) -> str:
    """At most twelve numbers, the middle ones left out."""
    words = [f"{value:.{digits}g}" for value in values]
    return " ".join(words if len(words) <= 12 else [*words[:6], "...", *words[-4:]])


def start_formula(course: Course, has_image: bool) -> str:
    first = course.sigmas[0]
    image = f"{course.image_gain:.6g} x0 + " if has_image else ""
    formula = f"x = {image}{course.gain:.6g} noise, and the first call expects sigma {first:.6g}"
    if has_image and course.image_gain == 1 and course.gain == first:
        return f"x = x0 + sigma noise with sigma {first:.6g}"
    return formula


def draws_in_words(course: Course, recipe: Recipe, has_image: bool) -> list[str]:
    draws = course.draws
    source = {
        "CPU": "the CPU's generator",
        "GPU": f"CUDA's generator ({draws.card}: {threads_of(draws.card):,} threads), emulated",
        "NV": "the emulation of CUDA's generator",
    }
    lines = [f"noise        {source[draws.source]}, with the seed"]
    n = 1
    for i in range(draws.before):
        use = "the encoder's noise" if draws.posterior == i else "is not used"
        lines.append(f"draw {n}       {use}")
        n += 1
    if has_image and draws.posterior is None:
        lines.append("encoder      its mean, without noise")
    batch = f", of {draws.batch} pictures at once" if draws.batch > 1 else ""
    lines.append(f"draw {n}       the noise that is added{batch}")
    n += 1
    for _ in range(draws.between):
        lines.append(f"draw {n}       is not used")
        n += 1
    if "generator" not in signature(course.sampler).parameters:
        lines.append("steps        no noise is added")
    elif draws.tree is not None and len(course.sigmas) > 1:
        low, high = draws.tree
        lines.append(f"steps        a Brownian tree from {low:.4f} to {high:.4f}, with the seed")
    elif draws.step_seed is not None:
        other = draws.step_seed(0)
        offset = f" + {other}" if other else ""
        who = source[draws.step_source or draws.source]
        lines.append(f"steps        draws 1, 2, ... of {who}, with the seed{offset}")
    else:
        lines.append(f"steps        draws {n}, {n + 1}, ... of the same stream")
    return lines
