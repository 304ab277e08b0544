"""The command line: `minisd COMMAND ...`, or `minisd` alone for the prompt.

A command is a module with configure(parser) and run(args) -> exit status, imported when asked for.
"""

import argparse
import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from minisd.cli import in_words

COMMANDS = {
    "img2img": ("minisd.cli.pictures", "draw on top of a picture"),
    "txt2img": ("minisd.cli.pictures", "draw from noise alone"),
    "explain": ("minisd.trace.explain", "tell how much noise goes in, and for which steps"),
    "strip": ("minisd.trace.strips", "draw, and show the latent at every step"),
    "diff": ("minisd.trace.diff", "tell where two recorded runs part"),
    "sweep": ("minisd.trace.sweep", "draw with many settings, and lay the pictures out"),
    "attention": ("minisd.explorer.attention", "show which words the picture looks at where"),
    "explore": ("minisd.explorer.command", "make a page that shows a drawing at all strengths"),
    "recall": ("minisd.cli.recall", "print the command that makes a picture again"),
    "lab": ("minisd.lab.command", "certify a sampler, yours or one of minisd's"),
}
PROMPT = ("minisd.cli.prompt", "draw what is typed, line by line")

USAGE = """\
usage: minisd                            a prompt for lines of words and switches
       minisd COMMAND ...                one of those below; COMMAND -h tells its switches
       minisd --from_file FILE           lines from a file
       minisd --version

Stable Diffusion 1.x, small enough to read and exact enough to trust.
"""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv and not argv[0].startswith("-") else ""
    if argv in (["-h"], ["--help"]):
        print(USAGE)
        for name, (_, about) in COMMANDS.items():
            print(f"  {name:10} {about}")
        return 0
    if argv == ["--version"]:
        print("minisd", version("minisd"))
        return 0
    if command and command not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"minisd: no command is named {command}; there are {known}", file=sys.stderr)
        return 2

    # einops 0.8.2 compares versions as text, takes torch 2.13 for older than 2.8, and imports
    # torch._dynamo for it (0.7 s). What it would set up there is not needed from 2.8 on.
    sys.modules.setdefault("einops._torch_specific", ModuleType("einops._torch_specific"))
    module, about = COMMANDS.get(command, PROMPT)
    parser = argparse.ArgumentParser(prog=f"minisd {command}".strip(), description=about)
    warnings.showwarning = say_warning
    warnings.simplefilter("always", UserWarning)
    try:
        room = import_module(module)
        room.configure(parser)
        return room.run(parser.parse_args(argv[1:] if command else argv))
    except (ValueError, OSError) as error:  # a mistake of the user's, or in a file
        print(f"minisd: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminisd: stopped", file=sys.stderr)
        return 130


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
