"""The command line: `minisd COMMAND ...`, or `minisd` alone for the prompt.

Each command is a module with `configure(parser)` and `run(args) -> exit status`, imported when it is asked for.
"""

import argparse
import sys
import warnings
from importlib import import_module

COMMANDS = {
    "img2img": ("minisd.cli.pictures", "draw on top of a picture"),
    "txt2img": ("minisd.cli.pictures", "draw from noise alone"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    name = next((word for word in argv if not word.startswith("-")), None)
    parser = argparse.ArgumentParser(
        prog="minisd",
        description="Stable Diffusion 1.x, small enough to read and exact enough to trust.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, (module, help) in COMMANDS.items():
        child = commands.add_parser(command, help=help, description=help.capitalize() + ".")
        if command == name:
            import_module(module).configure(child)
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print("minisd", version("minisd"))
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    warnings.showwarning = say_warning
    warnings.simplefilter("always", UserWarning)
    try:
        return import_module(COMMANDS[args.command][0]).run(args)
    except (
        ValueError,
        OSError,
    ) as error:  # the user's mistake, or the file's or disk's: one line says it
        print(f"minisd: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nminisd: stopped", file=sys.stderr)
        return 130


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
