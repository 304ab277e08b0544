"""`minisd verify PICTURE ...`: draw each picture again, and say in a line whether it is the same.

The exit status is 0 if all are identical, 1 if some differ by rounding only, 3 if some are
different, and 2 after a mistake. Nothing is written, and only files that are named are read.
"""

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from minisd.cli.messages import in_words, is_expected, visible
from minisd.cli.studio import Studio
from minisd.cli.switches import add_model_switches
from minisd.proof.record import read_record
from minisd.proof.verdict import verify
from minisd.recipes.metadata import read_chunks, to_recipe

HELP = "draw a picture again: is it the same, and if not, why?"


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("files", nargs="+", metavar="PICTURE", type=os.path.expanduser,
        help="a picture with its settings in it")  # fmt: skip
    add("-I", "--init_img", "--init-img", dest="image", metavar="FILE", type=os.path.expanduser,
        help="the init image, if the picture does not hold it (--self-contained)")  # fmt: skip
    add("-M", "--init_mask", dest="mask", metavar="FILE", type=os.path.expanduser,
        help="the mask, if the picture does not hold it")  # fmt: skip
    add("--search", action="store_true",
        help="if it differs, draw it with every sampler and schedule, to find the one")  # fmt: skip
    add_model_switches(parser)
    parser.set_defaults(dtype=None)  # the first picture's


def run(args: argparse.Namespace) -> int:
    for path in (args.image, args.mask):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"there is no file {path}")
    if args.dtype is None:
        args.dtype = dtype_of(args.files[0])
    studio, status = Studio(args), 0
    for file in args.files:
        try:
            to_recipe(read_chunks(Path(file)), file, None)  # before the model is loaded
            with redirect_stdout(sys.stderr):  # the only lines of the output are the answers
                facts = studio.facts
            verdict = verify(file, studio.sd, facts, args.image, args.mask, args.search)
        except Exception as error:
            if not is_expected(error):
                raise
            print(f"minisd: {in_words(error)}", file=sys.stderr)
            status = max(status, 2)
            continue
        print(visible(f"{file}: {verdict.line()}"))
        status = max(status, verdict.status)
    return status


def dtype_of(file: str) -> str:
    """The dtype that the picture was drawn with, if it says so."""
    try:
        dtype = read_record(read_chunks(Path(file))).get("dtype")
    except (ValueError, OSError):
        dtype = None  # it is reported when its turn comes
    return dtype if dtype in ("float32", "bfloat16", "float16") else "float32"
