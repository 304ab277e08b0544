"""`minisd` alone: a prompt that takes lines of words and switches, one picture or batch a line."""

import argparse
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from minisd.cli import in_words, metadata, switches
from minisd.cli.pictures import Studio

HISTORY = Path("~/.minisd_history").expanduser()

HELP = """\
words -switches       draw: fire -s10 -S42 -I drawing.png -f 0.7    (-h lists the switches)
-I -1, -S -1          the last picture, the last seed; -2 is the one before, and so on
!history [N]          the last lines, numbered
!N                    put line N back, to be edited or repeated
!fetch FILE           put back the line that made a picture, from the settings that it holds
# ...                 a comment
q                     leave; so does Ctrl-D. Ctrl-C stops a picture, not the program"""


def configure(parser: argparse.ArgumentParser) -> None:
    switches.configure(parser)
    switches.configure_model(parser)
    parser.add_argument(
        "--from_file", metavar="FILE", help="take lines from a file; - is the input"
    )


def run(args: argparse.Namespace) -> int:
    studio = Studio(args.model, args.device, args.dtype)
    if args.from_file:
        return run_file(studio, args)
    print("minisd: words, then switches; !help tells more, q leaves")
    history = History()
    while True:
        try:
            line = history.ask()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if line == "q":
            return 0
        try:
            obey(line, studio, args, history)
        except KeyboardInterrupt:
            print("\nstopped")
        except (ValueError, OSError) as error:
            print(f"minisd: {in_words(error)}", file=sys.stderr)


def run_file(studio: Studio, args: argparse.Namespace) -> int:
    """Each line of a file as if typed. A bad one is named and passed over; exit status 1."""
    failed = 0
    for number, line in enumerate(read_lines(args.from_file), 1):
        if line == "q":
            break
        if line and not line.startswith(("#", "//")):
            print(f"# {line}")
        try:
            obey(line, studio, args, History(read=False))
        except (ValueError, OSError) as error:
            failed += 1
            print(f"minisd: line {number}: {in_words(error)}", file=sys.stderr)
    return 1 if failed else 0


def read_lines(path: str) -> Iterator[str]:
    if path == "-":
        yield from (line.strip() for line in sys.stdin)
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from (line.strip() for line in file)


def obey(line: str, studio: Studio, defaults: argparse.Namespace, history: "History") -> None:
    """Do what one line says. Raises ValueError, OSError."""
    line = re.sub(r"^(invoke|dream|minisd)>\s*|^!dream\s+", "", line)  # pasted with its prompt
    if not line or line.startswith(("#", "//")):
        return
    if line in ("-h", "--help", "!help", "help", "?"):
        print(HELP)
        if line in ("-h", "--help"):
            parser = switches.Switches(prog="words", add_help=False)
            switches.configure(parser)
            parser.print_help()
    elif found := re.fullmatch(r"!history(?:\s+(\d+))?", line):
        for i, text in history.last(int(found[1] or 20)):
            print(f"{i:4}  {text}")
    elif found := re.fullmatch(r"!(\d+)", line):
        history.put_back(history.line(int(found[1])))
    elif found := re.fullmatch(r"!fetch\s+(.+)", line):
        path = " ".join(switches.shell_words(found[1]))
        recalled = metadata.recall(path)
        notes = metadata.find_init_image(recalled.args, recalled.init_hash, Path(path).parent)
        for note in [*recalled.notes, *notes]:
            warnings.warn(note, stacklevel=1)
        history.put_back(metadata.dream(recalled.args))
    elif line.startswith("!"):
        raise ValueError(f"{line.split()[0]} is not a command here; !help lists them")
    else:
        studio.make(switches.read_line(line, defaults))


class History:
    """Line editing and the lines of this and earlier sessions, where the system has readline."""

    def __init__(self, read: bool = True):
        try:
            import readline  # editing and history for input(), as soon as it is imported
        except ImportError:
            readline = None
        self.readline = readline if read else None
        self.pending = ""
        if self.readline:
            try:
                self.readline.read_history_file(HISTORY)
            except OSError:
                pass  # there is none yet
            self.readline.set_history_length(1000)

    def ask(self) -> str:
        if self.readline and self.pending:
            self.readline.set_startup_hook(lambda: self.readline.insert_text(self.pending))
        try:
            line = input("minisd> ").strip()
        finally:
            self.pending = ""
            if self.readline:
                self.readline.set_startup_hook(None)
        if self.readline:
            try:
                self.readline.write_history_file(HISTORY)
            except OSError:
                pass  # a home that can't be written to costs the history, not the session
        return line

    def put_back(self, line: str) -> None:
        print(line)
        self.pending = line

    def last(self, n: int) -> list[tuple[int, str]]:
        length = self.readline.get_current_history_length() if self.readline else 0
        return [(i, self.line(i)) for i in range(max(1, length - n + 1), length + 1)]

    def line(self, i: int) -> str:
        found = self.readline.get_history_item(i) if self.readline and i > 0 else None
        if found is None:
            raise ValueError(f"there is no line {i} in the history")
        return found
