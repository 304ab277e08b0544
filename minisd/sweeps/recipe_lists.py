"""Recipes as rows: reading lists of them from JSONL and CSV files, and the key of a row."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minisd.files import sha256
from minisd.recipes import Recipe
from minisd.recipes.dream import BY_FIELD, option_value, seed_weights
from minisd.recipes.metadata import Model
from minisd.recipes.recipe import name_of
from minisd.sweeps.axes import FIELDS

# The columns of a table. Between these two groups are the metrics.
FIRST_COLUMNS = ("file", *FIELDS, "steps_run", "calls", "sigma")
LAST_COLUMNS = ("pixels", "latent", "weights", "minisd", "dtype", "exact", "device", "seconds")
LAST_COLUMNS += ("error", "key")
VARYING = ("device", "seconds")  # the columns that depend on where the row was drawn
ROW_MARKS = {"key", "pixels"}  # columns that only a sweep's own table has
NAMES_OF_FILES = ("image", "mask")
NAMES_OF_FUNCTIONS = ("sampler", "schedule", "guidance", "guidance_rule")


# ---- reading -------------------------------------------------------------------------------------


def read_recipes(path: str | Path, base: Recipe | None = None) -> list[Recipe]:
    """The recipes of a .jsonl file (an object a line) or a .csv file (with a header).

    Names are the fields of Recipe; a field that a line leaves out has the base's value. The table
    of a sweep can be read too. Raises ValueError, which names the line, and OSError.
    """
    path, base = Path(path), base or Recipe("")
    ending = path.suffix.lower()
    if ending not in (".csv", ".jsonl", ".ndjson"):
        raise ValueError(f"{path} should end in .jsonl or .csv")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = list(csv_rows(text, path) if ending == ".csv" else json_rows(text, path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8, at byte {error.start + 1}") from None
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from None
    if not rows:
        raise ValueError(f"{path} has no recipes")
    return [to_recipe(values, f"{path}, line {line}", base) for line, values in rows]


def csv_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    names = reader.fieldnames or []
    is_table = set(names) >= ROW_MARKS
    for values in reader:
        if "" in values or None in values.values():
            problem = f"it has not {len(names)} values, as the first line has names"
            raise ValueError(f"{path}, line {reader.line_num}: {problem}")
        typed = {name: value for name, value in values.items() if value != ""}
        if is_table:
            typed = {name: value for name, value in typed.items() if name in FIELDS}
        yield reader.line_num, typed


def json_rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise ValueError(f'{path}, line {number}: it is not an object, as in {{"seed": 1}}')
            yield number, values


def to_recipe(values: Mapping[str, Any], place: str, base: Recipe | None = None) -> Recipe:
    """A recipe of values as JSON or CSV has them. Raises ValueError, which begins with `place`."""
    typed = {}
    for name, value in values.items():
        if name not in FIELDS:
            close = get_close_matches(str(name), FIELDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(FIELDS)}"
            raise ValueError(f"{place}: a recipe has no field {name!r} ({hint})")
        if value is not None:
            try:
                typed[name] = to_value(name, value)
            except ValueError as error:
                raise ValueError(f"{place}: {name}: {error}") from None
    try:
        return replace(base or Recipe(""), **typed)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None


def to_value(name: str, value: Any) -> Any:
    """A field's value: from text, or from what JSON has. Raises ValueError."""
    if isinstance(getattr(Recipe(""), name), bool):
        words = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false")
        return value
    if name == "options":
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("{") else option_value(value)
        if not isinstance(value, dict):
            raise ValueError(f"{value!r} is not an object, such as {{}}")
        return value
    if name == "variations" and isinstance(value, list):
        value = ",".join(f"{seed}:{weight}" for seed, weight in value)
    if name == "variations":
        return seed_weights(str(value)) if value else ()
    if name == "seed" and isinstance(value, list):
        return tuple(to_value("seed", seed) for seed in value)
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{json.dumps(value)[:60]} is not a number or a text")
    if name in ("prompt", "negative_prompt"):
        if not isinstance(value, str):
            raise ValueError(f"{value!r} is not a text")
        return value
    convert = BY_FIELD[name].convert
    return convert(str(value)) if convert else value


# ---- writing, and the key ------------------------------------------------------------------------


def values_of(recipe: Recipe) -> dict[str, Any]:
    """The recipe's fields, as JSON has them. Raises ValueError for a function without a name."""
    values: dict[str, Any] = {name: getattr(recipe, name) for name in FIELDS}
    for name in NAMES_OF_FUNCTIONS:
        if callable(values[name]):
            problem = f"a sweep's {name} is a name or FILE.py:FUNCTION"
            raise ValueError(f"{problem}, not the function {name_of(values[name])}")
    for name in NAMES_OF_FILES:
        values[name] = None if values[name] is None else str(values[name])
    values["variations"] = [list(pair) for pair in recipe.variations]
    values["options"] = dict(recipe.options)
    if isinstance(recipe.seed, Sequence):
        values["seed"] = list(recipe.seed)
    return values


class Keys:
    """The keys of rows that are drawn with one model.

    A key is a SHA-256 of the recipe, of the files that it names, of the weights, and of minisd's
    version. So it is the same on all machines, wherever the files are.
    """

    def __init__(self, model: Model):
        self.hash_of_file = cache(sha256_of)
        weights = (model.sha256, model.vae_sha256, model.ema, model.prediction, model.dtype)
        self.shared = [*weights, version("minisd")]

    def key(self, recipe: Recipe) -> str:
        """Raises ValueError, and OSError for a file that cannot be read."""
        values = values_of(recipe)
        for name in NAMES_OF_FILES:
            if values[name] is not None:
                values[name] = self.hash_of_file(values[name])
        files = []
        for name in NAMES_OF_FUNCTIONS:
            path, colon, _ = str(values[name]).rpartition(":")
            if colon and path.endswith(".py"):
                files.append(self.hash_of_file(path))
        try:
            text = json.dumps([values, files, self.shared], sort_keys=True)
        except TypeError as error:
            raise ValueError(f"the options {dict(recipe.options)}: {error}") from None
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_of(path: str) -> str:
    """Raises OSError, also for what can be read only once: a pipe."""
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not Path(path).is_file():
        raise OSError(f"{path} is not a file")
    return sha256(path)
