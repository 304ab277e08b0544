"""How two runs part from module to module: the decimal digits in which they still agree."""

import math
from collections.abc import Sequence

from PIL import Image

from minisd.figures.chart import chart
from minisd.figures.sheet import PALE, column, padded, text_image

MOST_DIGITS = 16  # float64 has no more: outputs that are equal count as this many
TICKS = 8


def growth_chart(
    paths: Sequence[str], distances: Sequence[float], title: str, named: str | None = None
) -> Image.Image:
    """A curve over the modules in the order in which they are called.

    distances: relative to the largest value of each output. named: the module to point at
    """
    digits = [
        MOST_DIGITS if d == 0 else min(MOST_DIGITS, max(0.0, -math.log10(d))) for d in distances
    ]
    every = max(1, len(paths) // TICKS)
    ticks = [(float(i), f"{i + 1}") for i in range(0, len(paths), every)]
    plane = chart(
        [("decimal digits that agree", [float(i) for i in range(len(paths))], digits)],
        size=(820, 300),
        x_label="modules in the order of their calls",
        x_ticks=ticks,
        levels=[(7.2, "float32 has 7.2")],
    )
    lines = [text_image(title, 13), plane]
    lines += [text_image(f"{text}  {paths[int(i)]}", 10, PALE) for i, text in ticks]
    if named is not None and named in paths:
        lines.append(text_image(f"the first that differs: {paths.index(named) + 1} {named}", 12))
    width = max(line.width for line in lines)
    return column([padded(line, width) for line in lines], gap=6, margin=10)
