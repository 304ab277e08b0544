"""Writing pictures: a new name each time, whole files or none, never over another file."""

import io
import os
import re
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

LOG = "minisd_log.txt"


def next_prefix(folder: Path) -> int:
    """One more than the highest number that a picture in the folder begins with."""
    matches = (re.match(r"(\d+)\..*\.png$", path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match), default=0) + 1


def open_folder(folder: str | Path) -> Path:
    """The output folder, created if need be. Raises OSError, or ValueError for a picture's name."""
    folder = Path(folder)
    if folder.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{folder} should be a folder: pictures are named by number and seed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"cannot write pictures to {folder}: it is a file") from None
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write pictures to {folder}: it is read-only")
    return folder


def save_png(image: Image.Image, folder: Path, name: str, texts: dict[str, str]) -> Path:
    """Write folder/name with its text chunks. Raises OSError, also if the name is taken."""
    info = PngInfo()
    for key, text in texts.items():
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info)
    return write_new(folder / name, data.getvalue())


def write_new(path: Path, data: bytes) -> Path:
    """Write a whole file, or raise OSError and leave nothing. Never replaces a file."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~current_umask())
            try:
                os.link(temporary, path)  # unlike a rename, a link fails if the name is taken
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                with open(path, "xb") as file:
                    file.write(data)
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise OSError(f"could not write {path}: {error.strerror or error}") from None
    return path


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
