"""`minisd` alone: a prompt that takes lines of words and switches and draws each line."""

import argparse
import codecs
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from minisd.cli.messages import in_words
from minisd.cli.studio import Studio
from minisd.cli.switches import (
    Request,
    add_folder_switch,
    add_model_switches,
    add_recipe_switches,
    add_series_switches,
    line_parser,
    read_line,
    request_from,
)
from minisd.recipes import read_recipe
from minisd.recipes.dream import dream_line, shell_words

try:
    import readline  # from here on, input() has line editing and a history
except ImportError:  # systems without it
    readline = None

QUIT = ("q", "quit", "exit")
HELP = "draw what is typed, line by line"
HISTORY = Path("~/.minisd_history").expanduser()
COMMANDS = """\
words -switches       draw: fire -s10 -S42 -I drawing.png -f 0.7    (-h lists the switches)
-I -1, -S -1          the last picture, the last seed; -2 is the one before, and so on
!history [N]          show the last lines, numbered
!N                    put line N back, to edit or repeat it
!fetch FILE           put back the line that drew a picture, from the settings inside it
# ...                 a comment
q, quit, exit         quit; so does Ctrl-D. Ctrl-C stops a picture, not the program"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe_switches(parser)
    add_series_switches(parser)
    add_folder_switch(parser)
    add_model_switches(parser)
    parser.add_argument(
        "--from_file", metavar="FILE", help="draw the lines of a file; - reads standard input"
    )


def run(args: argparse.Namespace) -> int:
    studio, defaults = Studio(args), request_from(vars(args))
    if args.from_file:
        return run_file(args.from_file, studio, defaults)
    print("minisd: type words, then switches; !help explains more, q quits")
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
        if line in QUIT:
            return 0
        try:
            obey(line, studio, defaults, history)
        except KeyboardInterrupt:
            print("\nstopped")
        except (ValueError, OSError) as error:
            print(f"minisd: {in_words(error)}", file=sys.stderr)


def run_file(path: str, studio: Studio, defaults: Request) -> int:
    """Draw each line of a file. A bad line is reported and skipped; then the status is 1."""
    status = 0
    history = History(enabled=False)
    for number, raw in enumerate(read_lines(path), 1):
        try:
            line = decoded(raw)
            if line in QUIT:
                break
            if line and not line.startswith(("#", "//")):
                print(f"# {line}")
            obey(line, studio, defaults, history)
        except (ValueError, OSError) as error:
            status = 1
            print(f"minisd: line {number}: {in_words(error)}", file=sys.stderr)
    return status


def read_lines(path: str) -> Iterator[bytes]:
    """The lines of a file, or of standard input, in UTF-8. UTF-16 is converted."""
    if path == "-":
        yield from sys.stdin.buffer
        return
    data = Path(path).expanduser().read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as Windows shells write it
        data = data.decode("utf-16", errors="replace").encode("utf-8")
    yield from data.removeprefix(codecs.BOM_UTF8).splitlines()


def decoded(raw: bytes) -> str:
    """One line as text. Raises ValueError if it is not plain UTF-8 text."""
    try:
        line = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8: save the file as UTF-8") from None
    if control := next((char for char in line if ord(char) < 32 and char != "\t"), None):
        raise ValueError(f"it has the control character {control!r}: remove it")
    return line


def obey(line: str, studio: Studio, defaults: Request, history: "History") -> None:
    """Do what one line says. Raises ValueError, OSError."""
    line = re.sub(r"^(invoke|dream|minisd)>\s*|^!dream\s+", "", line)  # pasted with its prompt
    if not line or line.startswith(("#", "//")):
        return
    if line in ("-h", "--help", "!help", "help", "?"):
        print(COMMANDS)
        if line in ("-h", "--help"):
            line_parser().print_help()
    elif match := re.fullmatch(r"!history(?:\s+(\d+))?", line):
        for i, text in history.last(int(match[1] or 20)):
            print(f"{i:4}  {text}")
    elif match := re.fullmatch(r"!(\d+)", line):
        history.put_back(history.line(int(match[1])))
    elif match := re.fullmatch(r"!fetch\s+(.+)", line):
        recipe = read_recipe(Path(" ".join(shell_words(match[1]))))
        for note in recipe.notes:
            warnings.warn(note, stacklevel=1)
        history.put_back(dream_line(recipe))
    elif line.startswith("!"):
        raise ValueError(f"there is no command {line.split()[0]}; !help lists the commands")
    else:
        studio.make(read_line(line, defaults))


class History:
    """Line editing, and the lines of this and earlier sessions, on systems with readline."""

    def __init__(self, enabled: bool = True):
        self.readline = readline if enabled else None
        self.pending = ""
        if self.readline:
            try:
                self.readline.read_history_file(HISTORY)
            except OSError:
                pass  # the first session has no history
            self.readline.set_history_length(1000)

    def ask(self) -> str:
        """The next line that is typed. Raises EOFError, KeyboardInterrupt."""
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
                pass  # without a writable home there is no history, but the session goes on
        return line

    def put_back(self, line: str) -> None:
        print(line)
        self.pending = line

    def last(self, n: int) -> list[tuple[int, str]]:
        length = self.readline.get_current_history_length() if self.readline else 0
        return [(i, self.line(i)) for i in range(max(1, length - n + 1), length + 1)]

    def line(self, i: int) -> str:
        line = self.readline.get_history_item(i) if self.readline and i > 0 else None
        if line is None:
            raise ValueError(f"there is no line {i} in the history")
        return line
