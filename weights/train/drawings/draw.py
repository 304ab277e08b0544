"""Draw the pictures in this folder again: 52 coloured drawings of 26 things, for the evaluation.

    python weights/train/drawings/draw.py

Every thing was drawn by hand, as polygons, ellipses and lines on a square of 100. There are two
pictures of each: one in flat colours, and one as with crayons, with unsteady outlines, in other
colours, elsewhere, on another ground. Training does not use these pictures, nor this way to draw.
"""

import colorsys
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

SIDE, LARGE = 128, 768

# A line is a shape: p = polygon, e = ellipse (its box), l = line (width, points); then the colour.
THINGS = {
    "house": """p 22 48 78 48 78 86 22 86 #e8c48a
p 14 50 50 18 86 50 #b5402f
p 44 64 58 64 58 86 44 86 #6b4226
p 28 56 38 56 38 66 28 66 #9fd4f0
p 63 56 73 56 73 66 63 66 #9fd4f0""",
    "evergreen tree": """p 46 74 54 74 54 92 46 92 #7a4a22
p 50 8 70 36 30 36 #2e8b45
p 50 24 76 56 24 56 #2a7f3e
p 50 42 82 78 18 78 #257237""",
    "deciduous tree": """p 45 56 55 56 58 92 42 92 #80502a
e 22 16 78 66 #4aa83c
e 14 34 50 66 #55b446
e 50 34 86 66 #43a036""",
    "sailboat": """p 16 68 86 68 74 86 28 86 #a3522b
l 3 50 12 50 68 #5a3a20
p 52 14 52 62 82 62 #f6f1e4
p 48 22 48 62 24 62 #e8544a""",
    "red apple": """e 18 28 62 88 #d8242c
e 38 28 82 88 #d8242c
l 4 50 34 54 14 #5a3a1c
p 56 22 74 12 70 28 #57a639""",
    "banana": """p 20 24 28 20 36 46 54 64 84 68 82 78 60 82 36 74 22 50 #f7d534
p 20 24 28 20 26 14 20 15 #6d5a1e""",
    "strawberry": """p 20 36 50 28 80 36 74 62 50 92 26 62 #e0303e
p 50 34 30 26 42 20 50 10 58 20 70 26 #4c9a3a
e 36 44 40 50 #ffe9a0
e 58 44 62 50 #ffe9a0
e 47 58 51 64 #ffe9a0""",
    "sun": """l 5 50 4 50 20 #f59a1c
l 5 50 80 50 96 #f59a1c
l 5 4 50 20 50 #f59a1c
l 5 80 50 96 50 #f59a1c
l 5 17 17 28 28 #f59a1c
l 5 83 17 72 28 #f59a1c
l 5 17 83 28 72 #f59a1c
l 5 83 83 72 72 #f59a1c
e 25 25 75 75 #fdc92c""",
    "birthday cake": """p 18 52 82 52 82 86 18 86 #f2b8c6
p 18 52 82 52 82 62 70 58 58 66 46 58 34 66 24 58 18 62 #fff4f0
l 4 34 34 34 52 #5aa9e6
l 4 50 32 50 52 #f2d13c
l 4 66 34 66 52 #7bc86c
e 31 24 37 34 #ff9a2e
e 47 22 53 32 #ff9a2e
e 63 24 69 34 #ff9a2e""",
    "red heart": """p 50 86 14 46 14 26 30 17 50 32 70 17 86 26 86 46 #e02638""",
    "star": """p 50 8 62 38 94 40 69 60 78 92 50 74 22 92 31 60 6 40 38 38 #fbcf2f""",
    "rainbow": """e 8 22 92 106 #e3443b
e 16 30 84 98 #f2a73b
e 24 38 76 90 #f4e04a
e 32 46 68 82 #58b368
e 40 54 60 74 #4a7fd0
p 0 66 100 66 100 110 0 110 GROUND""",
    "automobile": """p 8 58 20 56 32 36 66 36 78 56 92 60 92 76 8 76 #d93a3a
p 34 40 48 40 48 55 27 55 #bfe3f5
p 52 40 64 40 72 55 52 55 #bfe3f5
e 18 66 38 86 #2b2b30
e 64 66 84 86 #2b2b30
e 24 72 32 80 #c9c9cf
e 70 72 78 80 #c9c9cf""",
    "rocket": """p 50 6 64 28 64 70 36 70 36 28 #e9ecf2
p 50 6 64 28 36 28 #d9413a
e 42 34 58 50 #5aa7dd
p 36 52 22 76 36 72 #d9413a
p 64 52 78 76 64 72 #d9413a
p 40 72 60 72 50 94 #f7a928""",
    "mushroom": """p 40 54 60 54 64 90 36 90 #f3e6cf
p 12 56 18 34 34 20 50 16 66 20 82 34 88 56 #d5352e
e 28 32 40 44 #fff6ee
e 54 24 66 36 #fff6ee
e 66 42 76 52 #fff6ee""",
    "snowman": """e 24 50 76 96 #f4f8fc
e 32 22 68 56 #f4f8fc
p 34 20 66 20 66 26 34 26 #333340
p 40 6 60 6 60 22 40 22 #333340
e 41 34 46 39 #333340
e 54 34 59 39 #333340
p 50 40 50 46 66 44 #f08a24
l 5 34 54 66 54 #d23c3c""",
    "cactus": """p 42 18 48 12 54 12 58 18 58 86 42 86 #4c9a4a
p 20 36 28 36 28 54 42 54 42 62 24 62 20 58 #4c9a4a
p 72 28 80 28 80 50 76 56 58 56 58 48 72 48 #4c9a4a
p 32 82 68 82 64 98 36 98 #c26a3a""",
    "fish": """e 10 30 72 74 #f08a2c
p 66 52 92 30 92 74 #e06a1c
p 36 32 50 16 58 34 #e06a1c
e 22 44 30 52 #202028
l 3 44 36 44 68 #fff0d8""",
    "tulip": """l 5 50 50 50 96 #3f8f3f
p 50 92 30 60 34 84 #4fa64a
p 50 92 72 62 68 84 #4fa64a
p 30 16 42 30 50 12 58 30 70 16 70 44 60 56 40 56 30 44 #e2477f""",
    "balloon": """e 24 8 76 70 #e2353f
p 46 68 54 68 57 76 43 76 #c62a34
l 2 50 76 46 84 54 92 50 99 #555555
e 34 18 46 32 #f59aa0""",
    "crescent moon": """p 74 9 40 12 24 28 18 50 24 72 40 88 74 91 54 76 46 50 54 24 #f6d552""",
    "pizza": """p 12 24 88 24 50 94 #f6cf5f
p 8 14 92 14 92 26 8 26 #c98a3c
e 30 32 44 46 #cf3b2c
e 56 34 70 48 #cf3b2c
e 44 56 57 69 #cf3b2c""",
    "castle": """p 16 34 36 34 36 88 16 88 #b9b2ad
p 64 34 84 34 84 88 64 88 #b9b2ad
p 32 50 68 50 68 88 32 88 #a8a19c
p 12 36 26 10 40 36 #6a5acd
p 60 36 74 10 88 36 #6a5acd
p 44 66 56 66 56 88 44 88 #5a4634
p 23 46 29 46 29 56 23 56 #4a4a58
p 71 46 77 46 77 56 71 56 #4a4a58""",
    "butterfly": """e 8 14 48 52 #4aa3df
e 52 14 92 52 #4aa3df
e 16 48 48 84 #f0a030
e 52 48 84 84 #f0a030
e 46 20 54 82 #2f2a3a
l 2 50 22 38 8 #2f2a3a
l 2 50 22 62 8 #2f2a3a""",
    "cat face": """p 18 14 42 28 22 48 #f0b050
p 82 14 58 28 78 48 #f0b050
e 16 24 84 88 #f0b050
e 32 46 42 58 #3a2a1a
e 58 46 68 58 #3a2a1a
p 45 62 55 62 50 68 #d86a70
l 2 50 68 42 75 #3a2a1a
l 2 50 68 58 75 #3a2a1a""",
    "candle": """p 38 40 62 40 62 92 38 92 #f5ead2
l 2 50 40 50 30 #333333
p 50 8 60 26 50 34 40 26 #fba32a
p 26 88 74 88 68 97 32 97 #a87a3c""",
}
GROUNDS = ["#ffffff", "#cfe8f7", "#f7efd9", "#e9dff2", "#b8dfb0", "#f6d5c8", "#24305a", "#f2f2f2"]


def shapes(text: str, ground: str) -> list[tuple[np.ndarray, str, float]]:
    """Of each line: its points (N, 2), the colour, and the width (0: filled)."""
    outlines = []
    for line in text.splitlines():
        kind, *numbers, colour = line.split()
        values = np.array([float(number) for number in numbers])
        width, values = (values[0], values[1:]) if kind == "l" else (0.0, values)
        points = values.reshape(-1, 2)
        if kind == "e":
            angle = np.linspace(0, math.tau, 40, endpoint=False)[:, None]
            middle, half = points.mean(0), (points[1] - points[0]) / 2
            points = middle + half * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
        outlines.append((points, ground if colour == "GROUND" else colour, width))
    return outlines


def dense(points: np.ndarray, closed: bool) -> np.ndarray:
    """The same outline with a point about every 2 units."""
    ends = np.roll(points, -1, axis=0) if closed else points[1:]
    pieces = []
    for a, b in zip(points, ends, strict=False):
        count = max(1, round(np.hypot(*(b - a)) / 2))
        pieces.append(a + (b - a) * np.arange(count)[:, None] / count)
    return np.concatenate(pieces if closed else [*pieces, points[-1:]])


def canvas(number: int, ground: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (LARGE, LARGE), ground)
    pen = ImageDraw.Draw(image)
    if number % 3 == 1 and ground != "#24305a":
        pen.rectangle([0, LARGE * 0.78, LARGE, LARGE], fill="#8fc06a")
    return image, pen


def flat(name: str, number: int) -> Image.Image:
    ground = GROUNDS[number * 5 % len(GROUNDS)]
    image, pen = canvas(0 if name == "rainbow" else number, ground)
    for points, colour, width in shapes(THINGS[name], ground):
        xy = [tuple(p) for p in (points * 0.86 + 7) * LARGE / 100]
        if width:
            pen.line(xy, fill=colour, width=round(width * 0.86 * LARGE / 100), joint="curve")
        else:
            pen.polygon(xy, fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def crayon(name: str, number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    ground = GROUNDS[(number * 3 + 2) % len(GROUNDS)]
    image, pen = canvas(0 if name == "rainbow" else number + 1, ground)
    scale, move = rng.uniform(0.62, 0.85), rng.uniform(-6, 6, 2)
    turn = rng.normal() * 0.06
    for points, colour, width in shapes(THINGS[name], ground):
        line = dense(points, closed=not width)
        steps = np.cumsum(rng.normal(size=line.shape), axis=0) * 0.35
        steps -= steps[-1] * np.linspace(0, 1, len(line))[:, None]
        line = line + steps - 50
        line = line @ np.array(
            [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
        )
        xy = [tuple(p) for p in (line * scale + 50 + move) * LARGE / 100]
        h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in ImageColor.getrgb(colour)))
        h, s, v = h + rng.normal() * 0.02, s * rng.uniform(0.75, 1.1), v * rng.uniform(0.85, 1.1)
        rgb = colorsys.hsv_to_rgb(h % 1, min(s, 1), min(v, 1))
        paint = tuple(round(255 * c) for c in rgb) if colour != ground else ground
        if width:
            pen.line(xy, fill=paint, width=round(width * LARGE / 100), joint="curve")
        else:
            pen.polygon(xy, fill=paint)
            if colour != ground and number % 4:
                pen.line([*xy, xy[0]], fill="#2a2320", width=round(LARGE / 60), joint="curve")
    grain = rng.normal(size=(LARGE // 4, LARGE // 4)) * 5
    grain = np.array(Image.fromarray(grain.astype(np.float32)).resize((LARGE, LARGE)))
    pixels = np.array(image.filter(ImageFilter.GaussianBlur(1.5))).astype(np.float32)
    image = Image.fromarray((pixels + grain[..., None]).clip(0, 255).astype(np.uint8))
    image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image.quantize(48, dither=Image.Dither.NONE)  # small files


if __name__ == "__main__":
    for number, name in enumerate(THINGS):
        for hand in (flat, crayon):
            path = Path(__file__).parent / f"{name} {hand.__name__}.png"
            hand(name, number).save(path, optimize=True)
