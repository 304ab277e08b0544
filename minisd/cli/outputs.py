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
    names = (re.match(r"(\d+)\..*\.png$", path.name) for path in folder.iterdir())
    return max((int(name[1]) for name in names if name), default=0) + 1


def open_folder(folder: str | Path) -> Path:
    """The output folder, made if need be. Raises OSError that names it, ValueError for a file."""
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
    """Write folder/name with its text chunks. Raises OSError, for a name that is taken too."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text) if text.isascii() else info.add_itxt(key, text)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info)
    return write_new(folder / name, data.getvalue())


def write_new(path: Path, data: bytes) -> Path:
    """Write a file whole, or raise OSError and leave nothing. Never replaces a file."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
        try:
            with open(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~current_umask())
            try:
                os.link(temporary, path)  # unlike a rename, it fails where there is a file already
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


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """All pictures in rows, as square as they go."""
    columns = max(1, round(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    w, h = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * w, rows * h))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * w, i // columns * h))
    return sheet
