"""Labelled sheets of pictures, and curves, with Pillow alone."""

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Cell = Image.Image | str | None
INK, PALE, RULE = (34, 34, 34), (120, 120, 120), (222, 222, 222)
COLOURS = [(31, 97, 180), (208, 84, 18), (36, 130, 60), (150, 50, 140), (110, 110, 110)]


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def written(text: str, size: float = 13, colour: tuple[int, int, int] = INK) -> Image.Image:
    """Text, of one line or several, as a picture on white of the size it needs."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font=font(size), spacing=3)
    image = Image.new("RGB", (int(right) + 2, int(bottom) + 4), "white")
    ImageDraw.Draw(image).multiline_text((1, 1), text, colour, font(size), spacing=3)
    return image


def row(images: Sequence[Image.Image], gap: int = 2) -> Image.Image:
    """Side by side, tops aligned."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    joined = Image.new("RGB", (width, max(image.height for image in images)), "white")
    x = 0
    for image in images:
        joined.paste(image, (x, 0))
        x += image.width + gap
    return joined


def column(images: Sequence[Image.Image], gap: int = 8, margin: int = 0) -> Image.Image:
    """One below the other, left aligned."""
    width = max(image.width for image in images) + 2 * margin
    height = sum(image.height for image in images) + gap * (len(images) - 1) + 2 * margin
    joined = Image.new("RGB", (width, height), "white")
    y = margin
    for image in images:
        joined.paste(image, (margin, y))
        y += image.height + gap
    return joined


def table(rows: Sequence[Sequence[Cell]], align: str = "left", gap: int = 10) -> Image.Image:
    """Cells of text and pictures, with thin rules between rows. The first column are the labels;
    the others' pictures are aligned as `align` says, their texts likewise."""
    cells = [[written(c) if isinstance(c, str) else c for c in cells] for cells in rows]
    blank = Image.new("RGB", (1, 1), "white")
    cells = [[c or blank for c in line] for line in cells]
    widths = [max(line[i].width for line in cells) for i in range(len(cells[0]))]
    heights = [max(c.height for c in line) for line in cells]
    width = sum(widths) + gap * (len(widths) + 1)
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(heights) + 1)), "white")
    draw, y = ImageDraw.Draw(sheet), gap
    for j, line in enumerate(cells):
        x = gap
        for i, cell in enumerate(line):
            free = widths[i] - cell.width
            shift = {"left": 0, "right": free, "centre": free // 2}[align if i else "left"]
            sheet.paste(cell, (x + shift, y + (heights[j] - cell.height) // 2))
            x += widths[i] + gap
        y += heights[j] + gap
        if j < len(cells) - 1:
            draw.line([(gap, y - gap // 2), (width - gap, y - gap // 2)], RULE)
    return sheet


Curve = tuple[str, Sequence[float], Sequence[float]]  # name, x, y


def plot(
    curves: Sequence[Curve],
    size: tuple[int, int] = (720, 300),
    x_label: str = "",
    y_label: str = "",
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_range: tuple[float, float] | None = None,
    margins: tuple[int, int] = (56, 16),
    levels: Sequence[tuple[float, str]] = (),
    points: bool = True,
) -> Image.Image:
    """Curves over a linear axis from 0, with a legend above. `levels` are named horizontal lines.

    The plane lies margins[0] from the left edge and margins[1] from the right one, and x_range are
    the values at its sides: so a curve can stand below a strip, in line with its tiles.
    """
    big = 3  # drawn three times as large, then scaled down: Pillow's lines have rough edges
    w, h = size[0] * big, size[1] * big
    left, right = margins[0] * big, w - margins[1] * big
    top, bottom = 30 * big, h - 44 * big
    xs = [x for _, values, _ in curves for x in values]
    ys = [y for _, _, values in curves for y in values] + [y for y, _ in levels]
    x_low, x_high = x_range or (min(xs), max(xs))
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = ticks(max(ys))
    y_high = y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        return left + across * (right - left), bottom - y / y_high * (bottom - top)

    image = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(image)
    small = font(12 * big)
    for y in y_ticks:
        draw.line([at(x_low, y), at(x_high, y)], RULE, big)
        draw.text((left - 6 * big, at(x_low, y)[1]), f"{y:g}", PALE, small, anchor="rm")
    x_ticks = x_ticks or [(x, f"{x:g}") for x in ticks(x_high) if x_low <= x <= x_high]
    for x, text in x_ticks:
        draw.line([at(x, 0), (at(x, 0)[0], bottom + 4 * big)], PALE, big)
        draw.text((at(x, 0)[0], bottom + 6 * big), text, PALE, small, anchor="ma")
    for level, text in levels:
        a, b = at(x_low, level), at(x_high, level)
        for start in range(int(a[0]), int(b[0]), 10 * big):
            draw.line([(start, a[1]), (min(start + 5 * big, b[0]), a[1])], PALE, big)
        draw.text((b[0] - 4 * big, b[1] - 3 * big), text, PALE, small, anchor="rb")
    x_legend = left
    for (name, x_values, y_values), colour in zip(curves, COLOURS):
        line = [at(x, y) for x, y in zip(x_values, y_values)]
        if len(line) > 1:
            draw.line(line, colour, 2 * big, joint="curve")
        for x, y in line if points else []:
            draw.ellipse([x - 3 * big, y - 3 * big, x + 3 * big, y + 3 * big], colour)
        if name:
            draw.line([(x_legend, 14 * big), (x_legend + 16 * big, 14 * big)], colour, 3 * big)
            draw.text((x_legend + 21 * big, 14 * big), name, INK, small, anchor="lm")
            x_legend += 40 * big + draw.textlength(name, small)
    draw.text(((left + right) / 2, h - 4 * big), x_label, INK, small, anchor="mb")
    draw.text((right, 14 * big), y_label, INK, small, anchor="rm")
    return image.resize(size, Image.Resampling.LANCZOS)


def ticks(highest: float) -> list[float]:
    """0, and round numbers up to the first that is not below `highest`."""
    highest = max(highest, 1e-9)
    unit = 10.0 ** (len(f"{highest:.0f}") - 2) if highest >= 10 else 1.0
    while unit > highest:
        unit /= 10
    step = next(unit * k for k in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if highest / (unit * k) <= 6)
    count = -(-round(highest / step * 1e6) // 1_000_000)
    return [round(i * step, 12) for i in range(count + 1)]
