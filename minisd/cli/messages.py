"""How errors and warnings are shown: one line each."""

import sys


def print_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a note; takes the arguments of warnings.showwarning."""
    print(f"note: {message}", file=sys.stderr)


def in_words(error: Exception) -> str:
    """An error's message. A system error's number is left out."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)
