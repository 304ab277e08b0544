"""`minisd conform DIR`: another implementation's tensors, compared with the golden files.

docs/dialects.md says how to make them. The status is 0 if everything agrees, and 1 if not.
"""

import argparse
import os
from pathlib import Path

from minisd.dialects.conform import Verdict, check_file, first_cause, missing

HELP = "compare another implementation's tensors with the golden files"
FILES = ("tiny.safetensors", "sd1.safetensors", "dialects.safetensors")
GOLDEN = Path(__file__).parents[3] / "tests" / "golden"
SHOWN = 20  # tensors that differ


def configure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = f"a folder with {', '.join(FILES)}, or some of them: its tensors have the golden names"
    add("folder", metavar="DIR", type=os.path.expanduser, help=text)
    text = "the golden files (tests/golden of minisd's repository)"
    add("--golden", metavar="DIR", type=os.path.expanduser, default=str(GOLDEN), help=text)
    add("--all", action="store_true", help="print a line for each tensor, also those that agree")


def run(args: argparse.Namespace) -> int:
    folder, golden = Path(args.folder), Path(args.golden)
    if not golden.is_dir():
        raise FileNotFoundError(f"there is no folder {golden}: name the golden files with --golden")
    names = [name for name in FILES if (folder / name).is_file()]
    if not names:
        raise FileNotFoundError(f"{folder} has none of the files {', '.join(FILES)}")
    status = 0
    for name in names:
        verdicts = check_file(folder / name, golden / name)
        print(report(name, verdicts, args.all))
        if absent := len(missing(folder / name, golden / name)):
            print(f"  {absent} golden tensors are not there")
        if not all(verdict.agrees for verdict in verdicts):
            status = 1
    return status


def report(name: str, verdicts: list[Verdict], everything: bool) -> str:
    """Lines: a count for each stage, and the tensors that differ."""
    lines = [f"{name}: {first_cause(verdicts)}"]
    for kind in dict.fromkeys(verdict.kind for verdict in verdicts):
        of_kind = [verdict for verdict in verdicts if verdict.kind is kind]
        agreeing = sum(verdict.agrees for verdict in of_kind)
        lines.append(f"  {kind.title:20} {agreeing} of {len(of_kind)} agree")
    listed = [verdict for verdict in verdicts if everything or not verdict.agrees]
    for verdict in listed if everything else listed[:SHOWN]:
        mark = "agrees" if verdict.agrees else "DIFFERS"
        lines.append(f"  {mark:8} {verdict.name}: {verdict.text}")
    if not everything and len(listed) > SHOWN:
        lines.append(f"  ... and {len(listed) - SHOWN} more (--all)")
    return "\n".join(lines)
