"""Figures of the lessons, made with minisd.figures, and the drawing that they start from."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from minisd.figures.sheet import CENTRE, Cell, table
from minisd.figures.svg import Curves, plot
from minisd.images import open_image, resize


class Plot:
    """Curves, as minisd.figures.svg.plot draws them. A notebook shows the drawing."""

    def __init__(self, title: str, curves: Curves, x_label: str, y_label: str, **options: object):
        self.svg = plot(title, curves, x_label, y_label, **options)

    def _repr_svg_(self) -> str:
        return self.svg


def sheet(rows: Sequence[Sequence[Cell]], side: int = 112) -> Image.Image:
    """Rows of texts and pictures. Pictures are enlarged to `side` pixels."""
    return table([[enlarged(cell, side) for cell in row] for row in rows], x=CENTRE)


def enlarged(cell: Cell, side: int) -> Cell:
    if not isinstance(cell, Image.Image) or cell.width >= side:
        return cell
    size = (side, round(side * cell.height / cell.width))
    return cell.resize(size, Image.Resampling.NEAREST)


def my_drawing(path: str | Path = "my-drawing.png", size: int = 64) -> Image.Image:
    """Your drawing as a square of `size` pixels. Without such a file, the course's own house.

    Raises OSError for a file that is not a picture.
    """
    picture = on_white(open_image(path)) if Path(path).is_file() else house()
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return resize(picture.crop((left, top, left + side, top + side)), (size, size))


def on_white(picture: Image.Image) -> Image.Image:
    """As painting programs show it: what is transparent is white."""
    if picture.mode != "RGBA":
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def house() -> Image.Image:
    picture = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((56, 120, 200, 228), fill="#f3cf7a", outline="#5b4636", width=6)
    draw.polygon([(32, 124), (128, 36), (224, 124)], fill="#c8402f", outline="#5b4636", width=6)
    draw.rectangle((110, 164, 150, 228), fill="#7b4a2a", outline="#5b4636", width=5)
    for left in (70, 162):
        draw.rectangle((left, 144, left + 28, 174), fill="#8cc6e8", outline="#5b4636", width=5)
    draw.rectangle((0, 228, 256, 240), fill="#6aa84f")
    return picture
