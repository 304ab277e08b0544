"""`minisd COMMAND ...`, or `minisd` alone for the prompt."""

import argparse
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from typing import NamedTuple

from minisd.cli.commands import (
    attention,
    bisect,
    conform,
    convert,
    diff,
    explain,
    explore,
    img2img,
    inspect,
    lab,
    lessons,
    prompt,
    recall,
    strip,
    studio,
    sweep,
    translate,
    txt2img,
    verify,
)
from minisd.cli.messages import did_you_mean, in_words, is_expected, print_warning, visible
from minisd.cli.streams import safe_streams
from minisd.cli.switches import Parser
from minisd.exact_mode import exact


class Command(NamedTuple):
    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


MODULES = (
    img2img,
    txt2img,
    explain,
    strip,
    diff,
    bisect,
    sweep,
    attention,
    explore,
    studio,
    lessons,
    recall,
    translate,
    verify,
    lab,
    inspect,
    convert,
    conform,
    prompt,
)
COMMANDS = {
    module.__name__.rpartition(".")[2]: Command(module.HELP, module.configure, module.run)
    for module in MODULES
}
PROMPT = COMMANDS.pop("prompt")  # runs when no command is named

USAGE = """\
usage: minisd                            a prompt that draws a line of words and switches
       minisd COMMAND ...                one of the commands below; COMMAND -h lists its switches
       minisd --from_file FILE           draw every line of a file
       minisd --version

Stable Diffusion 1.x, small enough to read and exact enough to trust.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    with safe_streams() as output:
        try:
            status = answer(sys.argv[1:] if argv is None else argv)
        except KeyboardInterrupt:
            print("\nminisd: stopped", file=sys.stderr)
            status = 130
        output.flush()
        if output.failure:
            print(f"minisd: standard output: {output.failure}", file=sys.stderr)
            status = status or 1
    return status


def answer(argv: list[str]) -> int:
    if argv in (["-h"], ["--help"], ["help"]):
        print(USAGE)
        for name, command in COMMANDS.items():
            print(f"  {name:10} {command.help}")
        return 0
    if argv == ["--version"]:
        print("minisd", version("minisd"))
        return 0
    name = argv[0] if argv and not argv[0].startswith("-") else ""
    if name and name not in COMMANDS:
        known, hint = ", ".join(COMMANDS), did_you_mean(name, COMMANDS)
        if not hint:
            hint = '. To draw, type minisd txt2img "a prompt"'
        problem = f"there is no command {visible(name)}; choose from {known}{hint}"
        print(f"minisd: {problem}", file=sys.stderr)
        return 2

    command = COMMANDS.get(name, PROMPT)
    parser = Parser(prog=f"minisd {name}".strip(), description=command.help)
    with warnings.catch_warnings():
        warnings.showwarning = print_warning
        warnings.simplefilter("always", UserWarning)
        try:
            command.configure(parser)
            args = parser.parse_args(argv[1:] if name else argv)
            with exact() if getattr(args, "exact", False) else nullcontext():
                return command.run(args)
        except Exception as error:
            if not is_expected(error):
                raise
            print(f"minisd: {in_words(error)}", file=sys.stderr)
            return 2
