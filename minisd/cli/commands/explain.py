"""`minisd explain -s 30 -f 0.7`: what a run will do, and what runs of one step less or more would.

All of it follows from the settings (minisd/observe/plan.py). No model is loaded.
"""

import argparse
import math
import warnings
from collections.abc import Callable

from minisd.cli.switches import add_recipe_switches, recipe_from
from minisd.observe.ledger import power_ratio
from minisd.observe.plan import Plan, plan, steps_after
from minisd.recipes.recipe import DIALECTS, name_of
from minisd.schedule import SIGMAS, sigma_to_t, start_index

HELP = "print what a run will do, without a model"

HIGH, LOW = float(SIGMAS[-1]), float(SIGMAS[0])  # the highest and lowest level of the network
HEIGHT, WIDTH = 9, 64  # of the picture of the schedule, in characters


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="not needed: you can explain a whole line")
    add_recipe_switches(parser)


def run(args: argparse.Namespace) -> int:
    recipe = recipe_from(args)
    if dialect := DIALECTS[recipe.dialect]:
        print(dialect.describe(recipe))
        return 0
    steps = recipe.steps
    if getattr(args, "steps_after", None):
        steps = steps_after(args.steps_after, recipe.strength)
    here = plan(steps, recipe.strength, recipe.sampler, recipe.schedule)
    columns = [here]
    for i, count in ((0, steps - 1), (2, steps + 1)):
        try:
            neighbour = plan(count, recipe.strength, recipe.sampler, recipe.schedule)
        except ValueError:  # no such schedule: 0 steps, or 1000 of ddim
            continue
        columns.insert(i, neighbour)
    print(explanation(here, columns, with_guidance=recipe.guidance != 1))
    for note in here.notes:
        warnings.warn(note, stacklevel=2)
    return 0


def explanation(here: Plan, columns: list[Plan], with_guidance: bool) -> str:
    """The text: `here` beside its neighbours, and the schedule with the start of the run."""
    names = f"{name_of(here.sampler)} on the {name_of(here.schedule)} schedule"
    product = f"{here.steps_asked * here.strength:.10g}"
    counts = f"the first {here.steps_skipped} steps are skipped, {here.steps_run} are run"
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("steps asked", lambda p: str(p.steps_asked)),
        ("steps run", lambda p: str(p.steps_run)),
        ("steps skipped", lambda p: str(p.steps_skipped)),
        ("network calls", lambda p: str(p.calls)),
        ("noise added, sigma", lambda p: f"{p.sigma:.4f}"),
        ("noise expected", lambda p: f"{p.sigma:.4f}" if p.steps_run else "-"),
        ("as timestep t", lambda p: f"{sigma_to_t(p.sigma):.1f}" if p.steps_run else "-"),
        ("image gain in x", lambda p: "1"),
        ("noise gain in x", lambda p: "sigma" if p.steps_run else "0"),
        ("signal to noise", lambda p: power_ratio(p.sigma**-2) if p.steps_run else "no noise"),
        ("image share", lambda p: f"{p.image_share:.1%}"),
        ("noise share", lambda p: f"{p.noise_share:.1%}"),
    ]
    lines = [
        f"{here.steps_asked} steps at strength {here.strength:g}, {names}",
        f"steps * strength = {product}: {counts}",
        "",
    ]
    for label, value in rows:
        cells = [f"[{value(p)}]" if p is here else f"{value(p)} " for p in columns]
        lines.append(f"  {label:20}" + "".join(f"{cell:>19}" for cell in cells))
    batch = " With guidance, a call is a batch of two." if with_guidance else ""
    lines += [
        "",
        "  The shares are of the network's first input, x / sqrt(sigma^2 + 1). Their squares",
        f"  sum to 1.{batch}",
        "",
        *(f"  {line}" for line in schedule_picture(here)),
    ]
    longest = 10_000 - start_index(10_000, here.strength)  # the steps that steps_after can run
    if 0 < here.steps_run < here.steps_asked <= longest:
        asked, more = here.steps_asked, steps_after(here.steps_asked, here.strength)
        lines += ["", f"  To run {asked} steps at this strength, ask for {more}"]
        lines[-1] += f" (--steps-after {asked})."
    return "\n".join(lines)


def schedule_picture(here: Plan) -> list[str]:
    """The sigma of each step, on a logarithmic scale: skipped ○, the start ◆, run ●."""
    n, start = here.steps_asked, here.steps_skipped
    width = min(n, WIDTH)
    cells = [[" "] * width for _ in range(HEIGHT)]
    start_cell = (0, 0)
    for i, sigma in enumerate(here.sigmas[:-1]):
        line, column = HEIGHT - 1 - round(level(sigma) * (HEIGHT - 1)), i * width // n
        cells[line][column] = "○" if i < start else "●"
        if i == start:
            start_cell = (line, column)
    line, column = start_cell
    if here.steps_run:
        cells[line][column] = "◆"
    lines = ["sigma"]
    for i, row in enumerate(cells):
        sigma = HIGH * (LOW / HIGH) ** (i / (HEIGHT - 1))
        lines.append(f"{sigma:6.2f} ┤" + "".join(row).rstrip())
    lines.append("       └" + "─" * (width + 1))
    if here.steps_run:
        lines.append(" " * (8 + column) + f"▲ the run starts here, at step {start + 1} of {n}")
    lines.append("        ○ skipped  ◆ start  ● run")
    return lines


def level(sigma: float) -> float:
    """0 at the network's lowest sigma, 1 at its highest; even in log sigma."""
    return min(1.0, math.log(max(sigma, LOW) / LOW) / math.log(HIGH / LOW))
