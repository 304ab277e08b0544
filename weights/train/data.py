"""The pictures: reading the pack, the split, and an order that depends on (seed, step) only."""

import io
import json
import os
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# The pack's styles, and the words for them in captions. Evaluation uses the first one.
STYLES = {
    "fluent 3d": ("3d", "3d render"),
    "fluent color": ("glossy", "shiny"),
    "fluent flat": ("flat", "flat design"),
    "noto": ("noto", "cartoon"),
    "noto blob": ("blob", "rounded"),
    "fluent mono": ("mono", "black and white"),
    "noto sketch": ("line drawing",),
}
LINES = ("fluent mono", "noto sketch")  # black on white
DRAWINGS = "noto sketch"  # held out: the init images of the img2img evaluation


@dataclass
class Pack:
    """N pictures, and for each the fields of its caption (text, tags, style, codepoint, also)."""

    rgba: Tensor  # (N, 4, S, S) uint8, colours not multiplied by transparency
    rows: list[dict]

    def take(self, which: np.ndarray) -> "Pack":
        return Pack(
            self.rgba[torch.from_numpy(which).to(self.rgba.device)], [self.rows[i] for i in which]
        )


def find(folder: str | Path | None = None) -> Path:
    """The folder that holds the pack: the given one, or the first known place that has it."""
    here = Path(__file__).resolve().parent
    places = [Path(folder)] if folder else []
    if not folder:
        places += [Path(os.environ["MINISD_EMOJI"])] if "MINISD_EMOJI" in os.environ else []
        places += [Path("emoji"), here / "emoji", Path("~/.cache/minisd/emoji").expanduser()]
    for place in places:
        if [*place.glob("emoji*.npz")] and (place / "captions.jsonl").exists():
            return place
    raise SystemExit(
        f"there is no emoji*.npz with captions.jsonl in {', '.join(map(str, places))}\n"
        "make them with `python -m weights.train.build_dataset`, or name their folder with --data"
    )


def read_rows(folder: Path) -> list[dict]:
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read(folder: Path, size: int, device: str | torch.device = "cpu") -> Pack:
    """The pack, at `size` pixels a side, on `device`.

    If a picture has no transparency, the white around its subject is made transparent.
    """
    packed = np.load(next(iter(sorted(folder.glob("emoji*.npz")))))
    data, offsets = packed["data"], packed["offsets"]
    rows = read_rows(folder)
    if len(rows) != len(offsets) - 1:
        raise SystemExit(f"{folder} has {len(offsets) - 1} pictures but {len(rows)} captions")
    rgba, opaque = torch.empty(len(rows), 4, size, size, dtype=torch.uint8), []
    for i in range(len(rows)):
        image = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]]))
        opaque += [i] if image.mode == "RGB" else []
        image = image.convert("RGBA").resize((size, size), Image.Resampling.HAMMING)
        rgba[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    rgba = rgba.to(device)
    for batch in torch.tensor(opaque, dtype=torch.long).split(256):
        lines = torch.tensor([rows[i]["style"] in LINES for i in batch], dtype=torch.bool)
        rgba[batch.to(device)] = lift(rgba[batch.to(device), :3], lines.to(device))
    return Pack(rgba, rows)


# ---- white -> transparent ------------------------------------------------------------------------


def outside(rgb: Tensor, tolerance: float = 0.04) -> Tensor:
    """(B, 3, S, S) in 0..1 -> (B, 1, S, S) bool: the background.

    Background pixels have about the colour of the picture's edge, and are connected to the edge by
    such pixels. `tolerance` is the difference allowed in every channel.
    """
    edge = torch.cat([rgb[..., 0, :], rgb[..., -1, :], rgb[..., 0], rgb[..., -1]], dim=-1)
    edge_colour = edge.median(-1).values[..., None, None]
    alike = (rgb - edge_colour).abs().amax(1, keepdim=True) < tolerance
    reached = alike.clone()
    reached[..., 1:-1, 1:-1] = False
    places = torch.arange(rgb.shape[-1], device=rgb.device)
    for _ in range(rgb.shape[-1]):
        before = reached
        for dim, backwards in ((3, False), (3, True), (2, False), (2, True)):  # one sweep each way
            a, b = (v.flip(dim) if backwards else v for v in (reached, alike))
            index = places if dim == 3 else places[:, None]
            last_reached = torch.where(a, index, -1).cummax(dim).values
            last_wall = torch.where(b, -1, index).cummax(dim).values
            a = a | (b & (last_reached > last_wall))
            reached = a.flip(dim) if backwards else a
        if torch.equal(reached, before):
            break
    return reached


def lift(rgb: Tensor, lines: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) on white, (B,) bool -> uint8 (B, 4, S, S).

    Line drawings (True) become black, with transparency for brightness. In other pictures the
    white background becomes transparent, and in a rim of two pixels the white that is mixed in.
    """
    rgb = rgb.float() / 255
    out = outside(rgb)
    rim = F.max_pool2d(out.float(), 5, stride=1, padding=2).bool() & ~out
    mixed = 1 - rgb.amin(1, keepdim=True)
    alpha = torch.where(out, 0.0, torch.where(rim, mixed, 1.0))
    alpha = torch.where(lines[:, None, None, None], mixed, alpha)
    colour = ((rgb - (1 - alpha)) / alpha.clamp(min=0.02)).clamp(0, 1)
    colour = torch.where(lines[:, None, None, None], 0.0, colour)
    return (torch.cat([colour, alpha], dim=1) * 255).round().to(torch.uint8)


# ---- what is trained on, and in which order ------------------------------------------------------


def split(rows: list[dict], share: float = 0.05) -> np.ndarray:
    """(N,) of "train", "held" and "drawing". It depends on the rows, but not on their order.

    "drawing" is the style that is held out completely. "held" are about `share` of the other
    (emoji, style) pairs, chosen by a checksum of their names. An emoji with a held-out pair keeps
    at least two styles to train on.
    """
    styles = Counter(row["codepoint"] for row in rows if row["style"] != DRAWINGS)

    def rank(row: dict) -> int:
        return zlib.crc32(f"{row['codepoint']} {row['style']}".encode())

    def part(row: dict) -> str:
        if row["style"] == DRAWINGS:
            return "drawing"
        # At most one pair of an emoji is held out: the one with the lowest rank.
        is_lowest = rank(row) == lowest.get(row["codepoint"])
        return "held" if is_lowest and styles[row["codepoint"]] >= 3 else "train"

    lowest: dict[str, int] = {}
    for row in rows:
        if row["style"] != DRAWINGS and rank(row) % 10_000 < 10_000 * share:
            lowest[row["codepoint"]] = min(rank(row), lowest.get(row["codepoint"], rank(row)))
    return np.array([part(row) for row in rows])


def labelled(rows: list[dict], name: str | None) -> np.ndarray:
    """(N,) bool: the rows whose label is a line of the file `name` in this folder; None: all."""
    if name is None:
        return np.ones(len(rows), bool)
    labels = set((Path(__file__).parent / name).read_text(encoding="utf-8").splitlines())
    if unknown := labels - {row["text"] for row in rows}:
        raise SystemExit(f"{name}: there are no pictures of {', '.join(sorted(unknown))}")
    return np.array([row["text"] in labels for row in rows])


def order(n: int, seed: int, step: int, batch: int) -> np.ndarray:
    """(batch,) indices for this step. Each epoch has every one of the n once, in a new order."""
    places = step * batch + np.arange(batch)
    epochs = {e: np.random.default_rng([seed, e]).permutation(n) for e in set(places // n)}
    return np.array([epochs[p // n][p % n] for p in places])
