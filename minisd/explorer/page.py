"""Runs -> one HTML file that holds everything and asks for nothing."""

import base64
import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, features
from torch import Tensor

from minisd.checkpoint import StableDiffusion
from minisd.explorer.overlay import heat
from minisd.explorer.runs import Run
from minisd.images import to_pil
from minisd.trace.ledger import Ledger
from minisd.trace.tiles import latent_image

MOST_WORDS = 12  # whose attention is shown
TILE = 256  # pixels a side at most, of the pictures on the way


def page(title: str, data: dict[str, Any]) -> str:
    """The template with style, script and data in it. What comes from the prompt can't end the
    element that it stands in: in the title it is escaped, in the data no `<` is left."""
    folder = Path(__file__).parent
    parts = {
        "title": html.escape(title),
        "style": (folder / "page.css").read_text("utf-8"),
        "script": (folder / "page.js").read_text("utf-8"),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = (folder / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def run_data(sd: StableDiffusion, run: Run) -> dict[str, Any]:
    """What the page knows of a strength. Each sheet is a row of tiles: the drawing's, one for each
    step, the result's; `eps` and `words` have only those of steps. `words` has a row a word."""

    def small(latent: Tensor, bias: Iterable[float] = sd.latent_rgb_bias) -> Image.Image:
        return latent_image(latent, sd.latent_rgb, bias)

    scaled = [step.x / (step.sigma**2 + 1) ** 0.5 for step in run.steps]
    ends = small(run.encoded), small(run.latent)
    sheets = {
        "x": sheet([[ends[0], *(small(x) for x in scaled), ends[1]]]),
        "x0": sheet([[ends[0], *(small(step.x0) for step in run.steps), ends[1]]]),
        "image": sheet([[*(tile(to_pil(p)) for p in run.pictures), tile(run.image)]]),
    }
    words = range(min(len(run.maps.words), MOST_WORDS))
    maps = [[run.maps.word(i, step) for step in range(len(run.steps))] for i in words]
    if run.steps:  # the bias is that of latents of pictures; noise has none
        sheets["eps"] = sheet([[small(step.eps, (0.0, 0.0, 0.0)) for step in run.steps]])
    if run.steps and maps:
        sheets["words"] = sheet([[heat(one) for one in row] for row in maps])
    return {
        "strength": run.strength,
        "run": len(run.steps),
        "sheets": sheets,
        "shares": [[round(float(one.mean()), 4) for one in row] for row in maps],
        "ledger": ledger_data(run.ledger),
    }


def ledger_data(ledger: Ledger) -> dict[str, float | None]:
    names = ("sigma_put", "sigma_told", "t_told", "image_gain", "snr", "share_of_image", "calls")
    return {name: getattr(ledger, name) for name in names}


def tile(image: Image.Image) -> Image.Image:
    """The picture, made smaller where it is larger than TILE."""
    image = image.copy()
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image


def sheet(rows: list[list[Image.Image]]) -> str:
    """Tiles of one size, side by side, as a data URI. Small ones come out exact."""
    w, h = rows[0][0].size
    whole = Image.new("RGB", (w * len(rows[0]), h * len(rows)))
    for j, row in enumerate(rows):
        for i, one in enumerate(row):
            whole.paste(one, (i * w, j * h))
    return data_uri(whole, exact=max(w, h) <= 64)


def data_uri(image: Image.Image, exact: bool) -> str:
    file = io.BytesIO()
    kind = "webp" if features.check("webp") and max(image.size) < 16384 else "png"
    if kind == "webp":
        image.save(file, "WEBP", lossless=exact, quality=90 if exact else 85, method=6)
    else:
        image.save(file, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
