"""The pictures: read from the pack, split, and drawn in an order that (seed, step) tells."""

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

# The pack's styles, and the words for them in captions; the first is the one that evaluation uses.
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
DRAWINGS = "noto sketch"  # never trained on: the init images of the img2img evaluation


@dataclass
class Pack:
    """N pictures, and a caption's fields for each (text, tags, style, codepoint, also)."""

    rgba: Tensor  # (N, 4, S, S) uint8, colours not multiplied by transparency
    rows: list[dict]

    def take(self, which: np.ndarray) -> "Pack":
        return Pack(
            self.rgba[torch.from_numpy(which).to(self.rgba.device)], [self.rows[i] for i in which]
        )


def find(folder: str | Path | None = None) -> Path:
    """The folder that holds the pack: the one given, else the first that has it."""
    here = Path(__file__).resolve().parent
    places = [Path(folder)] if folder else []
    if not folder:
        places += [Path(os.environ["MINISD_EMOJI"])] if "MINISD_EMOJI" in os.environ else []
        places += [Path("emoji"), here / "emoji", Path("~/.cache/minisd/emoji").expanduser()]
    for place in places:
        if [*place.glob("emoji*.npz")] and (place / "captions.jsonl").exists():
            return place
    looked = ", ".join(map(str, places))
    raise SystemExit(
        f"no emoji*.npz with captions.jsonl in {looked}\n"
        "make them with `python -m weights.train.build_dataset`, or name their folder with --data"
    )


def read_rows(folder: Path) -> list[dict]:
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def read(folder: Path, size: int, device: str | torch.device = "cpu") -> Pack:
    """The pack, at `size` pixels a side, on `device`. Where it has no transparency the white around
    is lifted off."""
    packed = np.load(next(iter(sorted(folder.glob("emoji*.npz")))))
    data, offsets = packed["data"], packed["offsets"]
    rows = read_rows(folder)
    if len(rows) != len(offsets) - 1:
        raise SystemExit(f"{folder}: {len(offsets) - 1} pictures, {len(rows)} captions")
    rgba, opaque = torch.empty(len(rows), 4, size, size, dtype=torch.uint8), []
    for i in range(len(rows)):
        image = Image.open(io.BytesIO(data[offsets[i] : offsets[i + 1]]))
        opaque += [i] if image.mode == "RGB" else []
        image = image.convert("RGBA").resize((size, size), Image.Resampling.HAMMING)
        rgba[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    rgba = rgba.to(device)
    for some in torch.tensor(opaque, dtype=torch.long).split(256):
        lines_only = torch.tensor([rows[i]["style"] in LINES for i in some], dtype=torch.bool)
        rgba[some.to(device)] = lift(rgba[some.to(device), :3], lines_only.to(device))
    return Pack(rgba, rows)


# ---- white -> transparent ------------------------------------------------------------------------


def outside(rgb: Tensor, tolerance: float = 0.04) -> Tensor:
    """(B, 3, S, S) in 0..1 -> (B, 1, S, S) bool: what is joined to the edge by pixels that are like
    those at the edge. `tolerance` is the difference allowed in every channel."""
    edge = torch.cat([rgb[..., 0, :], rgb[..., -1, :], rgb[..., 0], rgb[..., -1]], dim=-1)
    near = (rgb - edge.median(-1).values[..., None, None]).abs().amax(1, keepdim=True) < tolerance
    found = near.clone()
    found[..., 1:-1, 1:-1] = False
    places = torch.arange(rgb.shape[-1], device=rgb.device)
    for _ in range(rgb.shape[-1]):
        before = found
        for dim, back in ((3, False), (3, True), (2, False), (2, True)):  # one sweep each way
            a, b = (v.flip(dim) if back else v for v in (found, near))
            index = places if dim == 3 else places[:, None]
            last_found = torch.where(a, index, -1).cummax(dim).values
            last_wall = torch.where(b, -1, index).cummax(dim).values
            a = a | (b & (last_found > last_wall))
            found = a.flip(dim) if back else a
        if torch.equal(found, before):
            break
    return found


def lift(rgb: Tensor, lines: Tensor) -> Tensor:
    """uint8 (B, 3, S, S) on white, (B,) bool -> uint8 (B, 4, S, S).

    Line drawings are black, as transparent as they are bright. Of others the white that is joined
    to the edge goes, and at the rim, two pixels wide, the white that is mixed in.
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
    """(N,) of "train", "held" and "drawing": the same for the same rows, whatever their order.

    "drawing" is the style kept out whole. "held" are about `share` of the other (emoji, style)
    pairs, chosen by their names' checksum, of emoji that keep at least two styles to train on.
    """
    styles = Counter(row["codepoint"] for row in rows if row["style"] != DRAWINGS)

    def rank(row: dict) -> int:
        return zlib.crc32(f"{row['codepoint']} {row['style']}".encode())

    def part(row: dict) -> str:
        if row["style"] == DRAWINGS:
            return "drawing"
        # of an emoji's pairs one at most is held: the one that was drawn lowest
        first = rank(row) == lowest.get(row["codepoint"])
        return "held" if first and styles[row["codepoint"]] >= 3 else "train"

    lowest: dict[str, int] = {}
    for row in rows:
        if row["style"] != DRAWINGS and rank(row) % 10_000 < 10_000 * share:
            lowest[row["codepoint"]] = min(rank(row), lowest.get(row["codepoint"], rank(row)))
    return np.array([part(row) for row in rows])


def labelled(rows: list[dict], name: str | None) -> np.ndarray:
    """(N,) bool: rows whose label is a line of the file `name` beside this one; None: all."""
    if name is None:
        return np.ones(len(rows), bool)
    labels = set((Path(__file__).parent / name).read_text(encoding="utf-8").splitlines())
    if unknown := labels - {row["text"] for row in rows}:
        raise SystemExit(f"{name}: no pictures of {', '.join(sorted(unknown))}")
    return np.array([row["text"] in labels for row in rows])


def order(n: int, seed: int, step: int, batch: int) -> np.ndarray:
    """(batch,) indices of this step: every one of the n once an epoch, in an order of its own."""
    places = step * batch + np.arange(batch)
    epochs = {e: np.random.default_rng([seed, e]).permutation(n) for e in set(places // n)}
    return np.array([epochs[p // n][p % n] for p in places])
