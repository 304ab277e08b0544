"""Runs every lesson in a kernel of its own, and writes the notebook beside its source.

    python docs/lessons/make.py [01 02 ...]

The notebooks are made from the text sources, never edited by hand. The exercises stay unsolved.
"""

import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SOURCES = sorted(FOLDER.glob("[0-9][0-9]-*.py"))


def notebook(source: Path) -> nbformat.NotebookNode:
    """The lesson without outputs. Cells are numbered, so that the same source gives the same file.

    Tags are dropped: only the tests use them.
    """
    book = jupytext.read(source)
    for i, cell in enumerate(book.cells):
        cell.id = f"cell-{i}"
        cell.metadata = nbformat.from_dict({})
    book.metadata = nbformat.from_dict({"kernelspec": book.metadata["kernelspec"]})
    return book


def make(source: Path) -> Path:
    book = notebook(source)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)  # the times of day
    path = source.with_suffix(".ipynb")
    nbformat.write(book, path)
    return path


def main() -> None:
    for source in SOURCES:
        if not sys.argv[1:] or source.name[:2] in sys.argv[1:]:
            start = time.perf_counter()
            path = make(source)
            took = time.perf_counter() - start
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {took:.1f} s")


if __name__ == "__main__":
    main()
