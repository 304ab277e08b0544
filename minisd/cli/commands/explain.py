"""`minisd explain -s 30 -f 0.7`: what a run is going to do, and what its neighbours would.

No model is loaded, nor torch: all of it follows from the schedule.
"""

import argparse
import math
from collections.abc import Callable

from minisd.cli import switches
from minisd.schedule import sigma_to_t, start_index, steps_after
from minisd.trace.ledger import Plan, plan, ratio

ROWS = 9  # of the sigma picture
COLUMNS = 64


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="?", help="not needed: a whole line can be explained")
    switches.configure(parser)


def run(args: argparse.Namespace) -> int:
    if args.steps_after is not None:
        args.steps = steps_after(args.steps_after, args.strength)
    here = plan(args.steps, args.strength, args.sampler, args.schedule)
    around = [here]
    if here.steps > 1:
        around.insert(0, plan(args.steps - 1, args.strength, args.sampler, args.schedule))
    if here.schedule != "ddim" or here.steps < 999:
        around.append(plan(args.steps + 1, args.strength, args.sampler, args.schedule))
    print(explained(here, around, guidance=args.cfg_scale))
    return 0


def explained(here: Plan, around: list[Plan], guidance: float = 7.5) -> str:
    """The text: the ledger of `here` beside its neighbours', and the grid with the entry point."""
    head = f"{here.steps} steps at strength {here.strength:g}, {here.sampler}"
    product = f"steps * strength = {here.steps * here.strength:.10g}"
    rows: list[tuple[str, Callable[[Plan], str]]] = [
        ("steps asked", lambda p: str(p.steps)),
        ("steps run", lambda p: str(p.run)),
        ("steps dropped", lambda p: str(p.dropped)),
        ("network calls", lambda p: str(p.calls)),
        ("noise put in, sigma", lambda p: f"{p.sigma:.4f}"),
        ("told to the network", lambda p: f"{p.sigma:.4f}" if p.run else "-"),
        ("as timestep t", lambda p: f"{sigma_to_t(p.sigma):.1f}" if p.run else "-"),
        ("image gain in x", lambda p: "1"),
        ("noise gain in x", lambda p: "sigma" if p.run else "0"),
        ("signal to noise", lambda p: ratio(p.sigma**-2) if p.run else "no noise"),
        ("share of the image", lambda p: f"{p.share:.1%}"),
        ("share of the noise", lambda p: f"{p.sigma * p.share:.1%}"),
    ]
    lines = [
        f"{head} on the {here.schedule} grid",
        f"{product}: the first {here.dropped} steps are dropped, {here.run} are run",
        "",
    ]
    for label, value in rows:
        cells = [f"[{value(p)}]" if p is here else f"{value(p)} " for p in around]
        lines.append(f"  {label:20}" + "".join(f"{cell:>19}" for cell in cells))
    lines += [
        "",
        "  The shares are those in what the network sees first, x / sqrt(sigma^2 + 1); their",
        "  squares add up to 1. "
        + ("" if guidance == 1 else "With guidance, a call is a batch of two."),
        "",
        *(f"  {line}" for line in grid_picture(here)),
    ]
    if 0 < here.run < here.steps and start_index(10_000, here.strength) <= 10_000 - here.steps:
        more = steps_after(here.steps, here.strength)
        lines += ["", f"  For {here.steps} steps to be run at this strength, ask for {more}"]
        lines[-1] += f" (--steps-after {here.steps})."
    return "\n".join(lines)


def grid_picture(here: Plan) -> list[str]:
    """The sigma of each step, on a logarithmic scale: dropped ○, entry ◆, run ●."""
    n = here.steps
    wide = min(n, COLUMNS)
    heights = [position(sigma) for sigma in here.grid[:-1]]
    cells = [[" "] * wide for _ in range(ROWS)]
    for i in range(n):
        column = i * wide // n
        kind = "○" if i < here.dropped else "●"
        cells[ROWS - 1 - round(heights[i] * (ROWS - 1))][column] = kind
    if here.run:
        column = here.dropped * wide // n
        row = ROWS - 1 - round(heights[here.dropped] * (ROWS - 1))
        cells[row][column] = "◆"
    lines = ["sigma"]
    for r, row in enumerate(cells):
        sigma = HIGH * (LOW / HIGH) ** (r / (ROWS - 1))
        lines.append(f"{sigma:6.2f} ┤" + "".join(row).rstrip())
    lines.append("       └" + "─" * (wide + 1))
    if here.run:
        mark = " " * (8 + here.dropped * wide // n)
        lines.append(f"{mark}▲ the image enters here, before step {here.dropped + 1} of {n}")
    lines.append("        ○ dropped  ◆ entry  ● run")
    return lines


HIGH, LOW = 14.6146, 0.0292  # the network's noisiest and cleanest


def position(sigma: float) -> float:
    """0 at the model's lowest sigma, 1 at its highest, even in log sigma."""
    return min(1.0, math.log(max(sigma, LOW) / LOW) / math.log(HIGH / LOW))
