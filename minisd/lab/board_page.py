"""The board as a page of Markdown and as a plot."""

from collections.abc import Iterable
from pathlib import Path

from minisd.figures.svg import plot
from minisd.files.marks import HTML_MARK
from minisd.lab.board import (
    CALLS,
    CFG_PP_GUIDANCE,
    GUIDANCE,
    SEEDS,
    STARTS,
    TEXTS,
    Entry,
    place,
    rows_of,
)

MARK = f"<!-- {HTML_MARK.decode()} -->"
INTRODUCTION = f"""# The board: error by network calls

Made by `minisd lab --board docs`, whose `board.csv` and `board.safetensors` are then moved to
`minisd/lab/`. `minisd lab FILE.py:FUNCTION --board` places a sampler of yours on it.

Each number is how far a sampler ends from a run of 1000 steps: the root mean square of the
difference of the latents, the mean over {len(TEXTS) * len(SEEDS)} cases, and half of its 95 %
interval. A clean latent of SD 1.x has a root mean square of about 1, and one of minisd emoji 64
about 2. The cases are the texts
{", ".join(TEXTS)} with seeds {", ".join(map(str, SEEDS))} (for the exact models, six draws of
noise). Guidance is {GUIDANCE:g}, or {CFG_PP_GUIDANCE:g} for CFG++. The schedule is Karras's. A
sampler takes as many steps as the calls in the column allow.

"noise" is text-to-image. "strength 0.7" is img2img on the clean latents of other cases.

A sampler that draws noise, or guides in its own way, has another limit than the rest. It is
compared with 1000 steps of itself, on one Brownian path. So the two kinds have tables of their own,
and their numbers say how soon a sampler settles, not which picture is better. On a network, the
board of all samplers leaves out the second kind: `minisd lab SAMPLER --board` measures one.

![Error by network calls](board.svg)
"""
HEADINGS = {
    "k_dpmpp_2": "Samplers without noise, compared with 1000 steps of k_dpmpp_2",
    "itself": "Samplers with noise or guidance of their own, each compared with 1000 of its steps",
}


def page(entries: list[Entry], facts: Iterable[str]) -> str:
    """The page; `facts` say how it was made, a sentence each."""
    parts = [MARK, INTRODUCTION, " ".join(facts), ""]
    for model in dict.fromkeys(e.model for e in entries):
        for start in STARTS:
            parts += [f"## {model}, from {start}", ""]
            for reference, heading in HEADINGS.items():
                rows = rows_of(entries, model, start, reference)
                if rows:
                    parts += [f"{heading}:", "", *markdown(rows), ""]
    return "\n".join(parts)


def markdown(rows: list[list[str]]) -> list[str]:
    head = ["sampler", *(f"{calls} calls" for calls in CALLS)]
    rule = ["---", *("---:" for _ in CALLS)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]


def text_table(rows: list[list[str]]) -> list[str]:
    head = ["", *(f"{calls} calls" for calls in CALLS)]
    return [f"  {row[0]:24}" + "".join(f"{cell:>17}" for cell in row[1:]) for row in (head, *rows)]


def figure(entries: list[Entry], model: str, count: int = 10) -> str:
    """The best samplers without noise, from noise, as SVG. Of equal curves it shows the first."""
    rows = rows_of(entries, model, "noise", "k_dpmpp_2")
    rows = list({tuple(row[1:]): row for row in reversed(rows)}.values())[::-1][:count]
    chosen = [e for e in entries if (e.model, e.start) == (model, "noise")]
    curves = {
        row[0]: [(float(e.calls_used), e.error) for e in chosen if e.sampler == row[0]]
        for row in rows
    }
    title = f"{model}: distance to 1000 steps"
    labels = ("network calls", "error of the latents")
    return f"{MARK}\n{plot(title, curves, *labels, log_x=True, log_y=True)}\n"


def places(board: list[Entry], measured: list[Entry]) -> list[str]:
    """A line for each start and each number of calls: the error, and the place on the board."""
    lines = []
    for entry in measured:
        rank, count = place(board, entry)
        lines.append(
            f"  {entry.model:18} {entry.start:13} {entry.calls_used:3} calls "
            f"{entry.error:9.4f} ± {entry.interval:.4f}   place {rank} of {count}"
        )
    return lines


def committed(name: str) -> Path | None:
    """The file of that name of the board that comes with minisd."""
    path = Path(__file__).with_name(name)
    return path if path.is_file() else None
