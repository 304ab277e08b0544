"""The table of a sweep: its rows in the order of their recipes, as CSV, and as Parquet."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from minisd.files import is_taken, new_file, write_file
from minisd.files.marks import Replaceable, may_replace
from minisd.sweeps.axes import FIELDS
from minisd.sweeps.folder import read_rows
from minisd.sweeps.metrics import PREVIOUS, distance
from minisd.sweeps.recipe_lists import FIRST_COLUMNS, LAST_COLUMNS

TABLE, PARQUET = "table.csv", "table.parquet"
Row = dict[str, Any]


def table_of(folder: Path, notes: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
    """The columns, and the folder's rows: for each key the last one, in the order of the fields.

    notes: the folder's settings. A row that failed later than it succeeded keeps its success.
    """
    rows: dict[str, Row] = {}
    for row in read_rows(folder):
        if not row.get("error") or row["key"] not in rows:
            rows[row["key"]] = row
    ordered = sorted(rows.values(), key=order)
    metrics = [name for name in notes.get("metrics", []) if name != PREVIOUS]
    columns = [*FIRST_COLUMNS, *(name.rpartition(":")[2] for name in metrics)]
    if PREVIOUS in notes.get("metrics", []):
        columns += add_distances(ordered, folder)
    return [*columns, *LAST_COLUMNS], ordered


def order(row: Row) -> list[tuple[int, Any]]:
    """Numbers by size, texts by letters, empty values first."""
    return [place(row.get(name)) for name in FIELDS] + [place(row["key"])]


def place(value: Any) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    if isinstance(value, int | float):
        return 1, value
    return 2, value if isinstance(value, str) else json.dumps(value)


def add_distances(rows: Sequence[Row], folder: Path) -> list[str]:
    """Add the distances to the neighbours to the rows. Returns the columns.

    The neighbour in a field is the picture that has the value before, all else equal.
    """

    @lru_cache(2000)
    def image(file: str) -> Image.Image:
        with Image.open(folder / file) as picture:
            return picture.convert("RGB")

    values = [tuple(place(row.get(name)) for name in FIELDS) for row in rows]
    number = {value: i for i, value in enumerate(values)}
    columns = []
    for k, name in enumerate(FIELDS):
        choices = sorted({value[k] for value in values})
        if len(choices) < 2:
            continue
        columns.append(f"{PREVIOUS}_{name}")
        before = dict(zip(choices[1:], choices))
        for row, value in zip(rows, values, strict=True):
            i = number.get((*value[:k], before.get(value[k]), *value[k + 1 :]))
            if i is not None and row.get("file") and rows[i].get("file"):
                pair = image(row["file"]), image(rows[i]["file"])
                if pair[0].size == pair[1].size:
                    row[columns[-1]] = float(f"{distance(*pair):.6g}")
    return columns


# ---- files ---------------------------------------------------------------------------------------


def write_table(columns: Sequence[str], rows: Sequence[Row], folder: Path) -> Path:
    """Write the CSV file, and the Parquet file if pyarrow is there. Raises OSError."""
    write_file(folder / TABLE, csv_text(columns, rows).encode("utf-8", "replace"), is_table)
    if has_pyarrow():
        with new_file(folder / PARQUET, is_parquet) as temporary:
            write_parquet(columns, rows, temporary)
    return folder / TABLE


def csv_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in rows:
        table.writerow([cell(row.get(name)) for name in columns])
    return text.getvalue()


def cell(value: Any) -> Any:
    """A value as CSV has it: options are JSON, variations are SEED:WEIGHT,..."""
    if isinstance(value, dict):
        return json.dumps(value) if value else ""
    if isinstance(value, list):
        return ",".join(f"{seed}:{weight!r}" for seed, weight in value)
    return "" if value is None else value


def has_pyarrow() -> bool:
    return find_spec("pyarrow") is not None


def write_parquet(columns: Sequence[str], rows: Sequence[Row], path: Path) -> None:
    pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    arrays = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        kinds = {type(value) for value in cells if value is not None}
        if not kinds <= {int, float} and kinds != {bool}:
            cells = [None if value is None else str(cell(value)) for value in cells]
        elif float in kinds:
            cells = [None if value is None else float(value) for value in cells]
        arrays[name] = pyarrow.array(cells)
    table = pyarrow.table(arrays).replace_schema_metadata({"Software": "minisd"})
    parquet.write_table(table, path)


def is_table(path: Path) -> bool:
    """Whether the file is a table of a sweep, with the columns as minisd writes them."""
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        names = next(csv.reader(file), [])
    first, last = names[: len(FIRST_COLUMNS)], names[-len(LAST_COLUMNS) :]
    return tuple(first) == FIRST_COLUMNS and tuple(last) == LAST_COLUMNS


def is_parquet(path: Path) -> bool:
    try:
        metadata = import_module("pyarrow.parquet").read_schema(path).metadata or {}
    except (OSError, ValueError):
        return False
    return metadata.get(b"Software") == b"minisd"


def check_table(folder: Path) -> None:
    """Raises ValueError if a file of another program has the table's name."""
    check_own(folder / TABLE, is_table)
    if has_pyarrow():
        check_own(folder / PARQUET, is_parquet)


def check_own(path: Path, is_own: Replaceable) -> None:
    """Raises ValueError if the path is taken by a file that no sweep wrote."""
    if is_taken(path) and not may_replace(path, is_own):
        raise ValueError(f"{path} exists, and no sweep wrote it: choose another folder")
