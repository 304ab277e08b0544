"""Where files go. The checks say before any work is done whether a file could be written."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from minisd.files.marks import Replaceable, is_marked, may_replace

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check_folder(folder: str | Path) -> Path:
    """A folder that can be written to, or created. Raises OSError, or ValueError for a file's name.

    Nothing is created.
    """
    folder = Path(os.path.expanduser(folder))
    if folder.suffix.lower() in PICTURES and not folder.is_dir():
        raise ValueError(f"{folder} should be a folder: pictures are named by number and seed")
    existing = folder
    while not is_taken(existing):
        existing = existing.parent
    if not existing.is_dir():
        name = "it" if existing == folder else existing
        raise NotADirectoryError(f"cannot write to {folder}: {name} is a file, not a folder")
    try:
        # Permissions alone do not tell: the superuser passes them even where nothing can be
        # written. This file has no name, or is removed at once.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {existing}: {error.strerror}") from None
    return folder


def open_folder(folder: str | Path) -> Path:
    """The folder, created if it is not there. Raises as check_folder does."""
    folder = check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"could not create the folder {folder}: {error.strerror}") from None
    return folder


def check_file(
    path: str | Path,
    example: str,
    inputs: Iterable[str | Path | None] = (),
    replaceable: Replaceable = is_marked,
) -> Path:
    """The path of a file that the user named. Raises OSError or ValueError if it cannot be written.

    example: a good name, whose ending is required. inputs: files that are read, which must stay.
    replaceable: whether an existing file may be replaced. Nothing is created, not even the folder.
    """
    path, ending = Path(os.path.expanduser(path)), Path(example).suffix
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file, as in {path / example}")
    if path.suffix.lower() != ending:
        raise ValueError(f"{path} should end in {ending}, as in {path.stem or 'name'}{ending}")
    if any(file is not None and is_same(path, os.path.expanduser(file)) for file in inputs):
        raise FileExistsError(f"{path} is read by this command: write to another file")
    if path.is_symlink():
        raise FileExistsError(f"{path} is a link, and minisd never writes through one: name a file")
    if is_taken(path) and not may_replace(path, replaceable):
        raise FileExistsError(
            f"{path} exists already, and minisd overwrites only sheets, tables, pages and traces "
            "that it made: choose another name"
        )
    check_folder(path.parent)
    return path


def is_taken(path: Path) -> bool:
    """Whether a file, folder or link has this name. Raises OSError for a name that is too long."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_same(path: str | Path, other: str | Path) -> bool:
    """Whether both are one file, also by links and other spellings of the name."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them is not there
        return False


def next_number(folder: Path) -> int:
    """One more than the highest number that a picture in the folder begins with."""
    matches = (re.match(r"(\d+)\..*\.png$", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=0) + 1
