"""Whole files or none, under a name that is free."""

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from secrets import token_hex

from minisd.files.marks import Replaceable, is_marked, may_replace, never

MOST_NAMES = 1000  # how many names write_first tries


@contextmanager
def new_file(path: Path, replaceable: Replaceable = never) -> Iterator[Path]:
    """The name of a temporary file, which becomes `path` at the end of the block.

    An existing file is replaced only if `replaceable` says so. Raises FileExistsError if the name
    is taken, OSError if the file cannot be written. Then nothing is left.
    """
    temporary = path.with_name(f".{token_hex(8)}.part")
    try:
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # a network share may report a full disk only now
            try:
                give_name(temporary, path)
            except FileExistsError:
                if not may_replace(path, replaceable):
                    raise
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise FileExistsError(f"could not write {path}: a file of that name exists") from None
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror or error}") from None


def give_name(temporary: Path, path: Path) -> None:
    """Name the file `path`. Raises FileExistsError if that exists."""
    try:
        os.link(temporary, path)  # unlike a rename, this fails if the name is taken
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "xb"):  # this takes the name, and fails if it is taken
            pass
        try:
            os.replace(temporary, path)
        finally:
            if temporary.exists():
                path.unlink()


def write_file(path: Path, data: bytes, replaceable: Replaceable = never) -> Path:
    """Write the file. Raises as new_file does."""
    with new_file(path, replaceable) as temporary:
        temporary.write_bytes(data)
    return path


def write_first(names: Iterable[Path], data: bytes) -> Path:
    """Write to the first of these names that is free, and return it. Raises OSError."""
    error = FileExistsError("there is no free name")
    for path in islice(names, MOST_NAMES):
        try:
            return write_file(path, data)
        except FileExistsError as taken:
            error = taken
    raise error


def write_named(path: Path, data: bytes, replaceable: Replaceable = is_marked) -> Path:
    """Write to the name that the user chose, after check_file. Raises OSError.

    If another program took the name in the meantime, the file gets the next free one, such as
    page-2.html, and a warning says so. Returns the name.
    """
    try:
        return write_file(path, data, replaceable)
    except FileExistsError:
        written = write_first(beside(path), data)
        warnings.warn(f"{path} was made by another program: written to {written}", stacklevel=2)
        return written


def beside(path: Path) -> Iterator[Path]:
    """page.html, page-2.html, page-3.html, ..."""
    yield path
    for n in count(2):
        yield path.with_name(f"{path.stem}-{n}{path.suffix}")


def numbered(folder: Path, number: int, ending: str) -> Iterator[Path]:
    """000012.ending, 000013.ending, ... from this number on."""
    for n in count(number):
        yield folder / f"{n:06}.{ending}"


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, which is created if it is not there. Raises OSError."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for a reader
        raise OSError(f"{path} is not a file")
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(f"{line}\n")
