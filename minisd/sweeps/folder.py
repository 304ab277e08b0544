"""A sweep's folder: its lock, its settings, the log of finished rows, pictures and latents.

    sweep.json    which model and metrics the folder is for
    rows.jsonl    a line for each row, as it was finished; the last line of a row's key counts
    pictures/     a PNG file for each row, with its recipe inside
    latents/      if asked for: a safetensors file for each row
    table.csv, table.parquet, page.html, sheet.png    made of these at the end

One process at a time draws into a folder. It holds a lock that ends with the process, so a killed
sweep leaves none. A row's files are written before its line: what has a line is complete.
"""

import json
import os
import random
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import safe_open

from minisd.files import is_taken, open_folder, write_file
from minisd.sweeps.work import LATENTS, PICTURES, ROW_KEY, Outcome, Task, picture_file

try:
    import fcntl
except ImportError:  # Windows: nothing stops a second process there
    fcntl = None

NOTES, LOG, LOCK = "sweep.json", "rows.jsonl", "sweep.lock"
PICTURE_FILE = re.compile(rf"{PICTURES}/[^/\\\0]+\.png")


class Folder:
    """An open folder. `with Folder(path, settings) as folder:` locks it.

    settings: what all of its rows share, as JSON has it. Raises ValueError if the folder holds
    another sweep, OSError if another process uses it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        self.settings = dict(settings)
        self.notes = read_notes(path)
        # What recipes without a seed get: the same one when the sweep is continued.
        self.seed = self.notes.get("seed") or random.SystemRandom().randrange(1, 2**32 - 1)
        if self.notes:
            other = [k for k in self.settings if self.notes.get(k) != self.settings[k]]
            if other:
                names = " and ".join(
                    f"other {k}" if k.endswith("s") else f"another {k}" for k in other
                )
                problem = f"{path} holds a sweep with {names}"
                raise ValueError(f"{problem}: choose another folder")

    def __enter__(self) -> "Folder":
        open_folder(self.path)
        self.lock = self.locked()
        self.log: Any = None
        try:
            self.claim()
        except BaseException:
            self.__exit__()
            raise
        return self

    def locked(self) -> Any:
        """The lock's open file. It is removed at the end; a process that is killed leaves it."""
        path = self.path / LOCK
        while True:
            lock = open(path, "ab")
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                    return lock
                lock.close()  # the process that held it has just removed it
            except BlockingIOError:
                lock.close()
                problem = f"another process is drawing into {self.path}"
                remedy = "wait for it, or choose another folder (each --shard has its own)"
                raise OSError(f"{problem}: {remedy}") from None
            except OSError:  # a network share without locks
                note = f"{self.path} cannot be locked: let only one process draw into it"
                warnings.warn(note, stacklevel=3)
                return lock

    def __exit__(self, *_: object) -> None:
        if self.log is not None:
            self.log.close()
        with suppress(OSError):  # Windows does not remove a file that is open
            (self.path / LOCK).unlink(missing_ok=True)
        self.lock.close()

    def claim(self) -> None:
        """Note the settings. A folder that has notes keeps its seed."""
        notes = self.settings | {"seed": self.seed}
        if notes != self.notes:
            data = json.dumps(notes, indent=1).encode()
            write_file(self.path / NOTES, data, lambda _: bool(self.notes))
            self.notes = notes

    # ---- rows ------------------------------------------------------------------------------------

    def finished(self) -> set[str]:
        """The keys of the rows that are complete, with the files that the settings ask for."""
        pictures = self.notes.get("pictures") and set(list_names(self.path / PICTURES))
        latents = self.notes.get("latents") and set(list_names(self.path / LATENTS))
        keys = set()
        for row in read_rows(self.path):
            is_complete = not row.get("error")
            if pictures is not False and row.get("file"):
                is_complete &= Path(row["file"]).name in pictures
            if latents is not False:
                is_complete &= latent_file(row["key"]).name in latents
            (keys.add if is_complete else keys.discard)(row["key"])
        return keys

    def check_pictures(self, tasks: Iterable[Task]) -> None:
        """Raises ValueError if a file that no sweep wrote has the name of a picture to draw."""
        taken = set(list_names(self.path / PICTURES))
        for task in tasks if taken else []:
            path = self.path / picture_file(task)
            if path.name in taken and not holds_key(path, task.key):
                raise ValueError(f"{path} exists, and no sweep wrote it: choose another folder")

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Write pictures and latents, then their rows. Raises OSError."""
        lines = []
        for outcome in outcomes:
            key = outcome.row["key"]
            files = {outcome.row.get("file"): outcome.picture, latent_file(key): outcome.latent}
            for name, data in files.items():
                if data is not None:
                    path = self.path / name
                    path.parent.mkdir(exist_ok=True)
                    write_file(path, data, lambda path, key=key: holds_key(path, key))
            row = {name: value for name, value in outcome.row.items() if value is not None}
            lines.append(json.dumps(row) + "\n")
        if self.log is None:
            self.log = open_log(self.path / LOG)
        self.log.write("".join(lines).encode())
        self.log.flush()


def open_log(path: Path) -> Any:
    """The log, to append to. A line that a killed process left unfinished is cut off."""
    log = open(path, "ab+")
    end = log.seek(0, os.SEEK_END)
    while end:  # look for the last line end, from behind
        start = max(0, end - 65536)
        log.seek(start)
        cut = log.read(end - start).rfind(b"\n")
        if cut >= 0:
            log.truncate(start + cut + 1)
            break
        end = start
    else:
        log.truncate(0)
    return log


def read_notes(folder: Path) -> dict[str, Any]:
    """The settings of the sweep in this folder; empty if there is none. Raises ValueError."""
    path, notes = folder / NOTES, None
    if not is_taken(path):
        for name in (LOG, PICTURES):
            if is_taken(folder / name):
                problem = f"{folder / name} exists, and no sweep wrote it"
                raise ValueError(f"{problem}: choose another folder")
        return {}
    if path.is_file() and not path.is_symlink():
        try:
            notes = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            pass
    if not isinstance(notes, dict) or "checkpoint" not in notes:
        raise ValueError(f"{path} was not written by a sweep: choose another folder")
    return notes


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the log, oldest first. Raises ValueError for a line that cannot be read."""
    path = folder / LOG
    if not path.exists():
        return
    with open(path, "rb") as log:
        for number, line in enumerate(log, 1):
            if not line.endswith(b"\n"):
                return  # a process is writing it, or was killed
            try:
                row = json.loads(line, object_pairs_hook=shared_words)
                is_row = re.fullmatch(r"[0-9a-f]{64}", row["key"])
                is_row = is_row and PICTURE_FILE.fullmatch(row.get("file", f"{PICTURES}/x.png"))
            except (ValueError, KeyError, TypeError, RecursionError, AttributeError):
                is_row = None
            if not is_row:
                remedy = "remove this line, and its row is drawn again"
                raise ValueError(f"{path}, line {number}, is not a row of a sweep: {remedy}")
            yield row


def shared_words(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Equal words are one string: a long table takes half the memory."""
    return {sys.intern(k): sys.intern(v) if isinstance(v, str) else v for k, v in pairs}


def latent_file(key: str) -> Path:
    """The place of a row's latent, inside the folder."""
    return Path(LATENTS, f"{key[:12]}.safetensors")


def list_names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def holds_key(path: Path, key: str) -> bool:
    """Whether the file is the picture or the latent of the row with this key."""
    try:
        if path.suffix == ".png":
            with Image.open(path, formats=["PNG"]) as image:
                return image.info.get(ROW_KEY) == key
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(ROW_KEY) == key
    except Exception:
        return False
