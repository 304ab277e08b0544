"""Attention as light: bright where a word is looked at more than elsewhere, dark where less."""

import numpy as np
from PIL import Image, ImageChops
from torch import Tensor

from minisd.attention_maps import AttentionMaps
from minisd.trace.sheet import PALE, Cell, column, table, written

# Colours from half the average share to one and a half times it. The last is almost white, so that
# multiplied with a picture it leaves the picture as it is.
RAMP = ((0.0, (40, 30, 92)), (0.35, (142, 58, 128)), (0.65, (240, 138, 92)), (1.0, (255, 248, 226)))


def heat(shares: Tensor) -> Image.Image:
    """(h, w) shares of attention -> colours, w x h pixels: relative to their own average."""
    level = (shares / shares.mean().clamp(min=1e-12) - 0.5).clamp(0, 1).numpy()
    at, colours = [a for a, _ in RAMP], np.array([c for _, c in RAMP])
    bands = [np.interp(level, at, colours[:, band]) for band in range(3)]
    return Image.fromarray(np.stack(bands, axis=-1).round().astype(np.uint8))


def lit(picture: Image.Image, shares: Tensor) -> Image.Image:
    """The picture in the light of the attention. The light is smooth: a map is only as fine as the
    latent is. Black is lifted to grey, so that the light is seen there too."""
    grey = picture.convert("L").point(lambda value: 64 + value * 191 // 255).convert("RGB")
    light = heat(shares).resize(picture.size, Image.Resampling.BICUBIC)
    return ImageChops.multiply(grey, light)


def attention_strip(
    maps: AttentionMaps, pictures: list[Image.Image], title: str, size: int = 96
) -> Image.Image:
    """A labelled sheet: a row for the pictures of the steps and one a word, a column a step and
    one for the average over steps. Tiles are `size` pixels wide."""
    w, h = size, round(size * pictures[0].height / pictures[0].width)
    pictures = [
        picture.convert("RGB").resize((w, h), Image.Resampling.NEAREST) for picture in pictures
    ]
    steps = [*range(len(pictures)), None]  # None is the average
    numbers = [f"step {i + 1}\nsigma {sigma:.2f}" for i, sigma in enumerate(maps.sigmas)]
    rows: list[list[Cell]] = [["", *numbers, "all steps"], ["picture", *pictures, pictures[-1]]]
    for i, word in enumerate(maps.words):
        lights = [
            lit(picture, maps.word(i, step))
            for picture, step in zip([*pictures, pictures[-1]], steps)
        ]
        rows.append([f"{word.text}\n{maps.word(i).mean():.1%}", *lights])
    note = "bright: looks at the word more than elsewhere; in per cent: its share of all attention"
    return column([written(f"{title}\n{note}", 12, PALE), table(rows, gap=6)], margin=10, gap=0)
