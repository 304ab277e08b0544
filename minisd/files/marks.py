"""How minisd recognizes files that it made: a text in PNG files, a meta element in HTML pages.

Only files that a command can make again are marked: sheets and pages, but not drawn pictures.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

Replaceable = Callable[[Path], bool]  # whether minisd made this file, so that it may be replaced

MARK = {"Software": "minisd"}  # a text chunk, to be passed to png_bytes
HTML_MARK = b'<meta name="generator" content="minisd">'  # within the first 1000 bytes


def png_bytes(
    image: Image.Image,
    texts: Mapping[str, str],
    optimize: bool = False,
    chunks: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The picture as a PNG file with these text chunks. `optimize` makes it smaller, slowly.

    chunks: chunks of other kinds, by their names of four letters
    """
    info = PngInfo()
    for name, content in (chunks or {}).items():
        info.add(name, content)
    for key, value in texts.items():
        # Bytes of file names that are not text become \udc.. escapes: a name must not stop a
        # picture from being saved.
        text = value.encode("utf-8", "backslashreplace").decode("utf-8")
        if text.isascii():
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=info, optimize=optimize)
    return data.getvalue()


def is_marked(path: Path) -> bool:
    """Whether the file is a sheet or a page that minisd made."""
    with open(path, "rb") as file:
        if HTML_MARK in file.read(1000):
            return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of a very large picture
            with Image.open(path, formats=["PNG"]) as image:
                return all(image.info.get(key) == text for key, text in MARK.items())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # not a PNG file that can be read


def never(path: Path) -> bool:
    """No existing file may be replaced."""
    return False


def may_replace(path: Path, replaceable: Replaceable) -> bool:
    """Whether the file is there and replaceable. Links, folders and pipes are not."""
    try:
        return path.is_file() and not path.is_symlink() and replaceable(path)
    except OSError:
        return False
