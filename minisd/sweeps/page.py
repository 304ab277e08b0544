"""A sweep as one HTML page, to sort and to filter. It loads the pictures beside it, and no more."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minisd.files import is_marked, write_file
from minisd.files.template import fill_template
from minisd.recipes import Recipe
from minisd.sweeps.axes import FIELDS
from minisd.sweeps.recipe_lists import values_of
from minisd.sweeps.table import Row, cell, check_own

PAGE = "page.html"
TEMPLATE = Path(__file__).with_name("page.html")
MOST_ROWS = 50_000  # a browser needs a second for so many
HIDDEN = {"key", "pixels", "latent", "weights"}  # hashes: they are in the table


def check_page(folder: Path) -> None:
    """Raises ValueError if a file of another program has the page's name."""
    check_own(folder / PAGE, is_marked)


def write_page(columns: Sequence[str], rows: Sequence[Row], folder: Path) -> Path:
    """Write the page. Raises OSError."""
    return write_file(folder / PAGE, page_of(columns, rows).encode("utf-8", "replace"), is_marked)


def page_of(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The page as HTML text. Columns with a single value are named once, above the pictures."""
    rows = rows[:MOST_ROWS]
    cells = {name: [plain(row.get(name)) for row in rows] for name in columns}
    values = {name: set(column) for name, column in cells.items()}
    names = [
        name for name in columns if name not in HIDDEN and (name == "file" or len(values[name]) > 1)
    ]
    usual = {name: plain(value) for name, value in values_of(Recipe("")).items()}
    constant = [
        (name, str(cells[name][0])[:400])
        for name in columns
        if name not in (*names, *HIDDEN) and cells[name][:1] not in ([], [None], [usual.get(name)])
    ]
    numbers = [
        i for i, name in enumerate(names) if all(not isinstance(v, str) for v in values[name])
    ]
    number = f"{len(rows):,} rows"
    data = {
        "title": f"A sweep of {number}",
        "columns": names,
        "rows": [list(row) for row in zip(*(cells[name] for name in names), strict=True)],
        "fields": [i for i, name in enumerate(names) if name in FIELDS],
        "numbers": numbers,
        "constants": constant,
        "pictures": any(cells["file"]),
    }
    return fill_template(TEMPLATE, f"{number} · minisd sweep", data)


def plain(value: Any) -> Any:
    """A value as JSON and JavaScript have it: infinity is a text."""
    value = cell(value)
    if value == "":
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
