"""Attention as light: bright where a place attends to a word more than average, dark where less."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops
from torch import Tensor

from minisd.figures.sheet import PALE, Cell, column, table, text_image
from minisd.observe.attention_maps import AttentionMaps

# Colours from half the average share to one and a half times it. The last is almost white: a
# picture multiplied with it stays as it is.
RAMP = ((0.0, (40, 30, 92)), (0.35, (142, 58, 128)), (0.65, (240, 138, 92)), (1.0, (255, 248, 226)))


def heat(shares: Tensor) -> Image.Image:
    """(h, w) shares of attention -> colours, w x h pixels: relative to their own average."""
    level = (shares / shares.mean().clamp(min=1e-12) - 0.5).clamp(0, 1).numpy()
    levels, colours = [level for level, _ in RAMP], np.array([colour for _, colour in RAMP])
    bands = [np.interp(level, levels, colours[:, band]) for band in range(3)]
    return Image.fromarray(np.stack(bands, axis=-1).round().astype(np.uint8))


def lit(picture: Image.Image, shares: Tensor) -> Image.Image:
    """The picture in the light of the attention (h, w).

    The light is smooth, because a map is only as fine as the latent. Black is raised to grey, so
    that the light is visible there too.
    """
    grey = picture.convert("L").point(lambda value: 64 + value * 191 // 255).convert("RGB")
    light = heat(shares).resize(picture.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(grey, light)


def attention_strip(
    maps: AttentionMaps, pictures: Sequence[Image.Image], title: str, size: int = 96
) -> Image.Image:
    """A labelled sheet: a row for the steps' pictures, and one for each word.

    It has a column for each step, and one for the average over steps. Tiles are `size` pixels wide.
    """
    w, h = size, round(size * pictures[0].height / pictures[0].width)
    tiles = [
        picture.convert("RGB").resize((w, h), Image.Resampling.NEAREST) for picture in pictures
    ]
    tiles.append(tiles[-1])  # the average is shown on the last step's picture
    steps = [*range(len(pictures)), None]  # None is the average
    numbers = [f"step {i + 1}\nsigma {sigma:.2f}" for i, sigma in enumerate(maps.sigmas)]
    rows: list[list[Cell]] = [["", *numbers, "all steps"], ["picture", *tiles]]
    for i, word in enumerate(maps.words):
        lights = [lit(tile, maps.word(i, step)) for tile, step in zip(tiles, steps, strict=True)]
        rows.append([f"{word.text}\n{maps.word(i).mean():.1%}", *lights])
    note = "bright: more attention to the word than average; per cent: its share of all attention"
    return column([text_image(f"{title}\n{note}", 12, PALE), table(rows, gap=6)], gap=0, margin=10)
