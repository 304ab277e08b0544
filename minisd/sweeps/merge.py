"""Several folders of one sweep -> one: the shards, or parts drawn on other machines."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from minisd.files import check_folder
from minisd.sweeps.folder import NOTES, Folder, latent_file, read_notes, read_rows
from minisd.sweeps.page import check_page, write_page
from minisd.sweeps.table import check_table, table_of, write_table
from minisd.sweeps.work import Outcome


def merge(sources: Sequence[Path], target: Path) -> int:
    """Add the rows of the folders to those of the target, with pictures and latents.

    The target may be new, or one of the folders: then its table is made again. A row that several
    folders have is kept once; a warning counts those whose pictures differ. Returns the number of
    rows. Raises ValueError for folders of different sweeps, and OSError.
    """
    if not sources:
        raise ValueError("name the folders to merge, as in: minisd sweep merge part-* --to whole")
    target = check_folder(target)
    settings = []
    for path in sources:
        notes = read_notes(path) if path.is_dir() else {}
        if not notes:
            raise ValueError(f"{path / NOTES} is missing: {path} is not the folder of a sweep")
        settings.append({name: value for name, value in notes.items() if name != "seed"})
    for path, other in zip(sources[1:], settings[1:]):
        names = [name for name in settings[0] if other.get(name) != settings[0][name]]
        if names:
            problem = f"{sources[0]} and {path} are of different sweeps"
            raise ValueError(f"{problem}: {' and '.join(names)} differ")
    folder = Folder(target, settings[0])
    check_table(target)
    check_page(target)
    with folder:
        pixels = {row["key"]: row.get("pixels") for row in read_rows(target)}
        done, conflicts = folder.finished(), set()
        for path in sources:
            if path.resolve() == target.resolve():
                continue
            for row in read_rows(path):
                key = row["key"]
                if key in done:
                    if row.get("pixels") not in (None, pixels[key]):
                        conflicts.add(key)
                    continue
                picture, latent = path / row.get("file", ""), path / latent_file(key)
                if row.get("file") and not picture.is_file():
                    continue  # somebody removed it: its row is drawn again
                folder.write(
                    [
                        Outcome(
                            row,
                            picture.read_bytes() if row.get("file") else None,
                            latent.read_bytes() if latent.is_file() else None,
                        )
                    ]
                )
                pixels[key] = row.get("pixels")
                if not row.get("error"):
                    done.add(key)
        if conflicts:
            number = f"{len(conflicts)} rows have different pictures in different folders"
            warnings.warn(f"{number}: the first one of each is kept", stacklevel=2)
        columns, rows = table_of(target, folder.notes)
        write_table(columns, rows, target)
        write_page(columns, rows, target)
    return len(rows)
