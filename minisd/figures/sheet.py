"""Labelled sheets of pictures, with Pillow alone."""

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Cell = Image.Image | str | None
INK, PALE, RULE = (34, 34, 34), (120, 120, 120), (222, 222, 222)
START, CENTRE, END = 0.0, 0.5, 1.0  # places in a larger space: left or top, middle, right or bottom


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def text_image(text: str, size: float = 13, colour: tuple[int, int, int] = INK) -> Image.Image:
    """Text, of one line or several, as a picture on white of the size it needs."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font=font(size), spacing=3)
    image = Image.new("RGB", (int(right) + 2, int(bottom) + 4), "white")
    ImageDraw.Draw(image).multiline_text((1, 1), text, colour, font(size), spacing=3)
    return image


def padded(
    image: Image.Image,
    width: int = 0,
    height: int = 0,
    x: float = START,
    y: float = START,
    background: str = "white",
) -> Image.Image:
    """The picture on a background of at least this size, at the place (x, y) in it."""
    size = max(width, image.width), max(height, image.height)
    if size == image.size:
        return image
    sheet = Image.new("RGB", size, background)
    left, top = int(x * (size[0] - image.width)), int(y * (size[1] - image.height))
    sheet.paste(image, (left, top))
    return sheet


def mosaic(
    rows: Sequence[Sequence[Image.Image]],
    gap: int = 0,
    margin: int = 0,
    x: float = START,
    y: float = START,
    background: str = "white",
) -> Image.Image:
    """Pictures in rows and columns, each at the place (x, y) in its cell. Rows may be shorter.

    A column is as wide as its widest picture, a row as high as its highest.
    """
    n = max(map(len, rows))
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(n)]
    heights = [max(image.height for image in row) for row in rows]
    width = sum(widths) + gap * (n - 1) + 2 * margin
    height = sum(heights) + gap * (len(rows) - 1) + 2 * margin
    sheet = Image.new("RGB", (width, height), background)
    top = margin
    for row, row_height in zip(rows, heights, strict=True):
        left = margin
        for image, cell_width in zip(row, widths, strict=False):
            sheet.paste(padded(image, cell_width, row_height, x, y, background), (left, top))
            left += cell_width + gap
        top += row_height + gap
    return sheet


def row(images: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """Side by side, tops aligned."""
    return mosaic([images], gap)


def column(images: Sequence[Image.Image], gap: int = 8, margin: int = 0) -> Image.Image:
    """One below the other, left aligned."""
    return mosaic([[image] for image in images], gap, margin)


def table(rows: Sequence[Sequence[Cell]], x: float = START, gap: int = 10) -> Image.Image:
    """Cells of text and pictures, with thin rules between rows.

    The first column holds labels, aligned left; the other cells are at the place x.
    """
    blank = Image.new("RGB", (1, 1), "white")
    cells = [
        [(text_image(cell) if isinstance(cell, str) else cell) or blank for cell in cells]
        for cells in rows
    ]
    label_width = max(line[0].width for line in cells)
    cells = [[padded(line[0], label_width), *line[1:]] for line in cells]
    sheet = mosaic(cells, gap, margin=gap, x=x, y=CENTRE)
    draw, y = ImageDraw.Draw(sheet), gap
    for line in cells[:-1]:
        y += max(cell.height for cell in line) + gap
        draw.line([(gap, y - gap // 2), (sheet.width - gap, y - gap // 2)], RULE)
    return sheet
