"""`minisd diff A B`: where two runs separate (minisd/observe/diff.py).

A and B are traces: `minisd strip --traces FOLDER` writes them, and so does `save_trace`.
"""

import argparse
import json

from minisd.cli import sheets
from minisd.cli.switches import add_folder_switch
from minisd.figures.diff_sheet import diff_sheet
from minisd.figures.strips import ROWS
from minisd.files import MARK
from minisd.observe.diff import THRESHOLD, compare, names_of, report
from minisd.observe.trace_file import load_trace

HELP = "compare two traces: where do the runs separate?"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a trace (.safetensors)")
    parser.add_argument("b", metavar="B", help="another trace, with latents of the same size")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, metavar="X",
        help=f"the distance of x above which the runs count as separate ({THRESHOLD})")  # fmt: skip
    sheets.add_switches(parser, rows="x0", choices=rows_of_a_trace())
    add_folder_switch(parser)


def run(args: argparse.Namespace) -> int:
    rows = sheets.check_switches(args, rows_of_a_trace(), [args.a, args.b])
    a, b = load_trace(args.a), load_trace(args.b)
    growth = compare(a, b, args.threshold)
    names = names_of(a, b)
    print(report(growth, a, b, names))
    settings = "\n".join(json.dumps(trace.settings) for trace in (a, b))
    texts = MARK | {"Title": f"A: {names[0]}; B: {names[1]}", "Description": settings}
    sheet = diff_sheet(growth, a, b, names, rows, args.tile)
    print(sheets.save(sheet, args, "diff.png", texts))
    return 0


def rows_of_a_trace() -> list[str]:
    """The rows that need no model."""
    return [name for name in ROWS if name != "decode"]
