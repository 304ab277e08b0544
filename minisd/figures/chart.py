"""Curves as pixels, with Pillow alone: for sheets, where a curve stands below a strip of tiles."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from minisd.figures.axes import COLOURS, Axis, round_numbers
from minisd.figures.sheet import INK, PALE, RULE, font

Curve = tuple[str, Sequence[float], Sequence[float]]  # name, x, y
SCALE = 3  # drawn three times as large, then reduced: Pillow's lines have rough edges
TOP, BOTTOM = 30, 44  # pixels above and below the plane


def chart(
    curves: Sequence[Curve],
    size: tuple[int, int] = (720, 300),
    x_label: str = "",
    x_ticks: Sequence[tuple[float, str]] | None = None,
    x_range: tuple[float, float] | None = None,
    margins: tuple[int, int] = (56, 16),
    levels: Sequence[tuple[float, str]] = (),
) -> Image.Image:
    """Curves over a linear y axis from 0, with a legend above.

    levels    (y, text): dashed lines across the plane
    margins   pixels to the left and to the right of the plane
    x_range   the x values at the plane's sides. With both, a curve can be drawn in line with the
              tiles of a strip above it
    """
    xs = [x for _, values, _ in curves for x in values]
    ys = [y for _, _, values in curves for y in values] + [y for y, _ in levels]
    x_low, x_high = x_range or (min(xs), max(xs))
    x_axis = Axis(x_low, x_high if x_high > x_low else x_low + 1)
    y_ticks = round_numbers(0, max(*ys, 1e-9), beyond=True)
    y_axis = Axis(0, y_ticks[-1])
    if x_ticks is None:
        x_ticks = [(x, f"{x:g}") for x in x_axis.ticks()]
    w, h = size[0] * SCALE, size[1] * SCALE
    left, right = margins[0] * SCALE, w - margins[1] * SCALE
    top, bottom = TOP * SCALE, h - BOTTOM * SCALE

    def to_x(value: float) -> float:
        return left + x_axis.share(value) * (right - left)

    def to_y(value: float) -> float:
        return bottom - y_axis.share(value) * (bottom - top)

    image = Image.new("RGB", (w, h), "white")
    draw = ImageDraw.Draw(image)
    small = font(12 * SCALE)
    for value in y_ticks:
        draw.line([(left, to_y(value)), (right, to_y(value))], RULE, SCALE)
        draw.text((left - 6 * SCALE, to_y(value)), f"{value:g}", PALE, small, anchor="rm")
    for value, text in x_ticks:
        x = to_x(value)
        draw.line([(x, bottom), (x, bottom + 4 * SCALE)], PALE, SCALE)
        draw.text((x, bottom + 6 * SCALE), text, PALE, small, anchor="ma")
    for level, text in levels:
        y = to_y(level)
        for x in range(left, right, 10 * SCALE):
            draw.line([(x, y), (min(x + 5 * SCALE, right), y)], PALE, SCALE)
        draw.text((right - 4 * SCALE, y - 3 * SCALE), text, PALE, small, anchor="rb")
    x_legend = left
    for i, (name, x_values, y_values) in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = [(to_x(x), to_y(y)) for x, y in zip(x_values, y_values, strict=True)]
        if len(points) > 1:
            draw.line(points, colour, 2 * SCALE, joint="curve")
        for x, y in points:
            draw.ellipse([x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE], colour)
        if name:
            middle = 14 * SCALE
            draw.line([(x_legend, middle), (x_legend + 16 * SCALE, middle)], colour, 3 * SCALE)
            draw.text((x_legend + 21 * SCALE, middle), name, INK, small, anchor="lm")
            x_legend += 40 * SCALE + int(draw.textlength(name, small))
    draw.text(((left + right) / 2, h - 4 * SCALE), x_label, INK, small, anchor="mb")
    return image.resize(size, Image.Resampling.LANCZOS)
