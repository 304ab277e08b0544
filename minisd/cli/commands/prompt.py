"""`minisd` alone: a prompt that takes lines of words and switches and draws each line."""

import argparse
import codecs
import io
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from minisd.cli.completion import complete
from minisd.cli.messages import UNPRINTABLE, did_you_mean, in_words, is_expected, visible
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
WORDS = ("!help", "!history", "!fetch", *QUIT)  # what a line can be besides a prompt
HELP = "draw what is typed, line by line"
HISTORY = Path("~/.minisd_history").expanduser()
COMMANDS = """\
words -switches       draw: fire -s10 -S42 -I drawing.png -f 0.7    (-h lists the switches)
-I -1, -S -1          the last picture, the last seed; -2 is the one before, and so on
!history [N]          show the last lines, numbered
!N                    put line N back, to edit or repeat it
!fetch FILE           put back the line that drew a picture, from the settings inside it
# ...                 a comment
Tab                   completes a switch, a file, or a name after -A or --schedule
q, quit, exit         quit; so does Ctrl-D. Ctrl-C stops a picture, not the program"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe_switches(parser)
    add_series_switches(parser)
    add_folder_switch(parser)
    add_model_switches(parser)
    text = "draw the lines of a file; - reads standard input"
    parser.add_argument("--from_file", metavar="FILE", type=os.path.expanduser, help=text)


def run(args: argparse.Namespace) -> int:
    studio, defaults = Studio(args), request_from(vars(args))
    if args.from_file:
        return run_file(args.from_file, studio, defaults)
    print("minisd: type words, then switches; !help explains more, q quits")
    history = History()
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not text are refused by `checked`
        sys.stdin.reconfigure(errors="surrogateescape")
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
            obey(checked(line), studio, defaults, history)
        except KeyboardInterrupt:
            print("\nstopped")
        except Exception as error:
            report(error)


def run_file(path: str, studio: Studio, defaults: Request) -> int:
    """Draw each line of a file. A bad line is reported and skipped; then the status is 1."""
    status = 0
    history = History(enabled=False)
    for number, raw in enumerate(read_lines(path), 1):
        try:
            line = checked(raw.decode("utf-8", "surrogateescape").strip())
            if line in QUIT:
                break
            if line and not line.startswith(("#", "//")):
                print(f"# {visible(line)}")
            obey(line, studio, defaults, history)
        except Exception as error:
            status = 1
            report(error, f"line {number}: ")
    return status


def report(error: Exception, where: str = "") -> None:
    """Print what went wrong with a line. The session goes on."""
    if is_expected(error):
        print(f"minisd: {where}{in_words(error)}", file=sys.stderr)
    else:  # a bug, in minisd or in a function of the user's own
        traceback.print_exc()
        print(f"minisd: {where}{type(error).__name__}, see above", file=sys.stderr)


def read_lines(path: str) -> Iterator[bytes]:
    """The lines of a file, or of standard input, in UTF-8.

    A byte order mark is left out, and UTF-16 is converted, as Windows shells write it. Raises
    ValueError for UTF-16 that is damaged.
    """
    if path == "-" and sys.stdin is None:
        return
    # Standard input is read line by line: the program that writes it may wait for a picture.
    file = sys.stdin.buffer if path == "-" else io.BytesIO(Path(path).read_bytes())
    first = file.readline()
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            yield from (first + file.read()).decode("utf-16").encode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"{path} is not valid UTF-16: save it as UTF-8") from None
        return
    # A line may also end in a carriage return alone, as on old Macs.
    for line in chain([first.removeprefix(codecs.BOM_UTF8)], file):
        yield from line.splitlines() or [b""]


def checked(line: str) -> str:
    """The line as it is. Raises ValueError for what is not text."""
    for char in line:
        category = unicodedata.category(char)
        if category == "Cs":  # Python's sign for a byte that is not UTF-8
            raise ValueError("the line is not UTF-8 (a list of lines must be saved as UTF-8)")
        if category == "Cc" and char != "\t":
            raise ValueError(f"the line has the control character {char!r}: remove it")
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
    elif match := re.fullmatch(r"!history(?:\s+(\d{1,20}))?", line):
        for i, text in history.last(int(match[1] or 20)):
            print(f"{i:4}  {visible(text)}")
    elif match := re.fullmatch(r"!(\d{1,20})", line):
        history.put_back(history.line(int(match[1])))
    elif match := re.fullmatch(r"!fetch(?:\s+(.+))?", line):
        if match[1] is None:
            raise ValueError("!fetch needs a picture with its settings in it: !fetch FILE")
        recipe = read_recipe(Path(" ".join(shell_words(match[1]))).expanduser())
        for note in recipe.notes:
            warnings.warn(note, stacklevel=1)
        history.put_back(one_line(dream_line(recipe)))
    elif line.startswith("!"):
        word = line.split()[0]
        hint = did_you_mean(word, WORDS)
        raise ValueError(f"there is no command {word}{hint}; !help lists the commands")
    else:
        studio.make(read_line(line, defaults))


def one_line(text: str) -> str:
    """A text from a picture as a line that can be typed. The tokenizer reads it as the same words.

    Line ends become spaces, and what cannot be shown is left out.
    """
    text = re.sub(r"\s*[\n\r\u2028\u2029]\s*", " ", text)
    return UNPRINTABLE.sub("", text)


class History:
    """Line editing, and the lines of this and earlier sessions, on systems with readline."""

    def __init__(self, enabled: bool = True):
        self.readline = readline if enabled else None
        self.pending = ""
        if self.readline:
            complete(self.readline)
            try:
                self.readline.read_history_file(HISTORY)
            except OSError:
                pass  # the first session has no history
            self.readline.set_history_length(1000)

    def ask(self) -> str:
        """The next line that is typed. Raises EOFError, KeyboardInterrupt."""
        if sys.stdin is None:  # it was closed before the program started
            raise EOFError
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
        print(visible(line))
        self.pending = line

    def last(self, n: int) -> list[tuple[int, str]]:
        length = self.readline.get_current_history_length() if self.readline else 0
        return [(i, self.line(i)) for i in range(max(1, length - n + 1), length + 1)]

    def line(self, i: int) -> str:
        length = self.readline.get_current_history_length() if self.readline else 0
        line = self.readline.get_history_item(i) if 0 < i <= length else None
        if line is None:
            raise ValueError(f"there is no line {i} in the history")
        return line
