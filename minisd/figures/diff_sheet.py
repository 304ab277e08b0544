"""Two runs' strips, and how far apart the runs are at each noise level."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from minisd.figures.chart import chart
from minisd.figures.sheet import END, PALE, column, padded, row, text_image
from minisd.figures.strips import GAP, result_image, strip
from minisd.observe.diff import Growth, conclusion
from minisd.observe.trace import Trace

MARGIN = 44  # pixels to the left of the strips, where the chart has its numbers


def diff_sheet(
    growth: Growth, a: Trace, b: Trace, names: tuple[str, str], rows: Sequence[str], tile: int
) -> Image.Image:
    """Both runs' strips, and below them, aligned with A's tiles, the distances."""
    rows = list(dict.fromkeys(rows)) if growth.x0 else ["x"]
    strips = {name: [strip(trace, name, tile, blank=0) for trace in (a, b)] for name in rows}
    width = max(image.width for pair in strips.values() for image in pair)
    lines = []
    for i, (letter, trace) in enumerate((("A", a), ("B", b))):
        lines.append(text_image(f"{letter}: {names[i]} ({trace.n_steps} steps run)", 13))
        tiles = column([padded(pair[i], width, x=END) for pair in strips.values()], gap=GAP)
        picture = result_image(trace, max(tiles.height, tile * len(rows)))
        lines.append(tiles if picture is None else row([tiles, picture], gap=10))
    tile_width = (strips[rows[0]][0].width + GAP) / a.n_steps
    first = width - a.n_steps * tile_width + tile_width / 2  # the middle of A's first tile

    def to_x(sigma: float) -> float:
        places = [step.i for step in a.steps]
        return first + tile_width * float(np.interp(-sigma, [-s for s in a.sigma], places))

    xs = [to_x(sigma) for sigma in growth.sigma]
    curves = [("distance of x", xs, growth.x)]
    if growth.x0:
        curves.append(("distance of x0, the predicted clean latent", xs, growth.x0))
    every = max(1, round(44 / tile_width + 0.49))  # tiles for each tick: its text needs 44 pixels
    plane = chart(
        curves,
        size=(width + MARGIN + 10, 230),
        x_label="sigma, at A's tiles",
        x_ticks=[(to_x(sigma), f"{sigma:.2f}") for sigma in a.sigma[::every]],
        x_range=(0, width),
        margins=(MARGIN, 10),
        levels=[(growth.threshold, "separate above this")],
    )
    shifted = [padded(line, line.width + MARGIN, x=END) for line in lines]
    text = text_image(conclusion(growth, a, b), 12, PALE)
    return column([*shifted, plane, padded(text, text.width + MARGIN, x=END)], gap=6, margin=10)
