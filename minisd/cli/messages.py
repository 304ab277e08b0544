"""How text is shown: errors and warnings in one line each, and nothing that steers the terminal."""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches

from minisd.fast.shortage import is_out_of_memory

# Control characters, line ends of all kinds, signs that reverse the direction of text, and bytes
# that are not text (Python reads those as lone surrogates).
UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: object) -> str:
    """The text in one line, with an escape such as \\x1b in place of what cannot be shown.

    Text in pictures and names of files come from strangers: what is printed must not change the
    terminal's title or colours, nor look like a line of minisd's own.
    """
    return UNPRINTABLE.sub(lambda match: escape(match[0]), str(text))


def escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a note; takes the arguments of warnings.showwarning."""
    print(f"note: {visible(message)}", file=sys.stderr)


def in_words(error: BaseException) -> str:
    """An error's message, in one line. A system error's number is left out."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return visible(f"{name}{error.strerror}")
    if is_out_of_memory(error) and not (isinstance(error, MemoryError) and str(error)):
        return "there is not enough memory: draw smaller pictures, or fewer at the same time"
    return visible(error)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or nothing if no name is like the word."""
    full_names = {name.lstrip("-!"): name for name in names}
    matches = get_close_matches(word.lstrip("-!"), full_names, 1)
    return f" (did you mean {full_names[matches[0]]}?)" if matches else ""


def is_expected(error: BaseException) -> bool:
    """Whether the user can do something about an error. All others are bugs: of minisd, or of the
    user's own sampler."""
    return isinstance(error, ValueError | OSError) or is_out_of_memory(error)
