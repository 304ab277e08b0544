"""The pictures that are drawn before training, and their captions.

There are three kinds, in this order: augmented emoji ("things"), rough drawings of the same emoji,
and pictures of anything (doodles.py). The UNet sees each kind at other noise levels (diffusion.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from weights.train import loop
from weights.train.captions import PLACES, Words, any_caption, caption, drawn_caption, synonyms
from weights.train.data import Pack
from weights.train.doodles import anything, drawings_of
from weights.train.pictures import Stylist, draw, on_white, pieces
from weights.train.profiles import Profile

SECOND = 0.15  # the share of drawings with a second subject
SHARES = (0.25, 0.25, 0.2, 0.3)  # in a batch of the autoencoder: plain, things, drawings, anything


@dataclass
class Pool:
    """T = n * variants + n * drawings + anything pictures, in this order.

    Picture i * variants is emoji i almost unchanged.
    """

    pictures: Tensor  # (T, 3, S, S) uint8
    tokens: Tensor  # (T, captions, PLACES) int32
    kinds: tuple[int, int, int]  # how many pictures of each kind
    variants: int
    plain: Tensor  # (N, 3, S, S) uint8: every emoji of the pack on white

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """(size, 3, S, S) in [-1, 1]: pictures of all kinds, for the autoencoder."""
        device, ends = self.pictures.device, np.cumsum(self.kinds)
        spans = [(0, len(self.plain)), (0, ends[0]), (ends[0], ends[1]), (ends[1], ends[2])]
        counts = np.diff(np.round(np.cumsum([0, *SHARES]) * size).astype(int))
        parts = []
        for k, ((first, last), count) in enumerate(zip(spans, counts, strict=True)):
            which = torch.randint(
                int(first), int(last), (int(count),), generator=generator, device=device
            )
            parts.append((self.plain if k == 0 else self.pictures)[which])
        return torch.cat(parts).float() / 127.5 - 1


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8"""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def chunks(n: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """(first, last) of pieces that are drawn together."""
    size = 1024 if device.type == "cuda" else 64
    for first in range(0, n, size):
        yield first, min(first + size, n)


def draw_pool(
    pack: Pack, which: np.ndarray, profile: Profile, folder: Path | None, seed: int
) -> Pool:
    """Draw the pool from the pack; things and drawings show the pictures `which` (n,).

    folder: where the pool is kept as pool.pt; None: nowhere, it is drawn again at each start.
    """
    path = folder / "pool.pt" if folder else None
    device, size = pack.rgba.device, profile.size
    n, v, d = len(which), profile.variants, profile.drawings
    if path and path.exists():
        kept = torch.load(path, map_location=device, weights_only=True)
        if kept.pop("made_of") == [n, v, d, profile.anything, size, seed]:
            return Pool(**kept)
    things = pack.take(which)
    stylist, words, alike = Stylist(things.rows), Words(), synonyms(things.rows)
    kinds = (n * v, n * d, profile.anything)
    pictures = torch.empty(sum(kinds), 3, size, size, dtype=torch.uint8, device=device)
    tokens = np.empty((sum(kinds), profile.captions, PLACES), np.int32)
    everything = np.arange(n)
    for variant in range(v):
        looks = stylist(everything, np.random.default_rng([seed, 3, variant]), plain=variant == 0)
        drawn = [
            to_bytes(draw(things, *piece))
            for piece in pieces(everything, looks, 1024 if device.type == "cuda" else 128)
        ]
        pictures[variant : n * v : v] = torch.cat(drawn)
        for i, row in enumerate(things.rows):
            rng = Random(f"{seed} {variant} {i}")
            look, other = looks.of(i), things.rows[looks.other[i]]
            for k in range(profile.captions):
                text = caption(rng, row, alike[row["codepoint"]], look, other)
                tokens[i * v + variant, k] = words(text)

    rng, start = np.random.default_rng([seed, 7]), n * v
    second = rng.integers(n, size=(n, d))
    has_second = (rng.random((n, d)) < SECOND) & stylist.social[:, None] & stylist.social[second]
    has_second &= stylist.code[second] != stylist.code[:, None]
    subject = np.arange(n * d) // d
    generator = torch.Generator(device).manual_seed(seed + 11)
    flat, flags = second.reshape(-1), has_second.reshape(-1)
    for first, last in chunks(n * d, device):
        subjects, companions = (torch.from_numpy(v[first:last]).to(device) for v in (subject, flat))
        both = torch.from_numpy(flags[first:last]).to(device)
        pictures[start + first : start + last] = drawings_of(
            things.rgba[subjects], things.rgba[companions], both, generator
        )
    for i in range(n * d):
        random, row = Random(f"{seed} drawing {i}"), things.rows[subject[i]]
        other = things.rows[flat[i]] if flags[i] else None
        for k in range(profile.captions):
            text = drawn_caption(random, row, alike[row["codepoint"]], other)
            tokens[start + i, k] = words(text)

    start += n * d
    shown = rng.integers(len(pack.rows), size=profile.anything)
    for first, last in chunks(profile.anything, device):
        index = torch.from_numpy(shown[first:last]).to(device)
        pictures[start + first : start + last] = anything(pack.rgba, index, generator)
    random, ids = Random(f"{seed} anything"), {}
    for i, index in enumerate(shown):
        for k in range(profile.captions):
            text = any_caption(random, pack.rows[index])
            if text not in ids:
                ids[text] = words(text)
            tokens[start + i, k] = ids[text]

    plain = torch.cat([to_bytes(on_white(part)) for part in pack.rgba.split(1024)])
    pool = Pool(pictures, torch.from_numpy(tokens).to(device), kinds, v, plain)
    if path:
        with loop.replacing(path) as part:
            made_of = [n, v, d, profile.anything, size, seed]
            torch.save({**vars(pool), "made_of": made_of}, part)
    return pool
