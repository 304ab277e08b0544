"""Where the notebooks are, and copies of them for the learner to work in."""

from pathlib import Path

from minisd.files import check_folder, is_taken, open_folder, write_file

INSTALLED = Path(__file__).parent / "notebooks"
CHECKOUT = Path(__file__).parents[2] / "docs" / "lessons"


def notebooks() -> list[Path]:
    """The ten notebooks in order, then the file of solutions. Raises FileNotFoundError."""
    folder = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    files = [*sorted(folder.glob("[0-9][0-9]-*.ipynb")), folder / "solutions.py"]
    if len(files) < 2:
        raise FileNotFoundError(f"there are no lessons in {folder}: install minisd again")
    return files


def copy_lessons(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Copy the lessons into a folder. Returns (new files, files that were there and are kept).

    Nothing is overwritten. Raises OSError, or ValueError for the name of a file.
    """
    sources, folder = notebooks(), check_folder(folder)
    open_folder(folder)
    new, kept = [], []
    for source in sources:
        path = folder / source.name
        if is_taken(path):
            kept.append(path)
        else:
            new.append(write_file(path, source.read_bytes()))
    return new, kept
