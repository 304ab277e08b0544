"""The pictures that are drawn before training, and their captions.

There are three kinds, in this order: augmented emoji ("things"), rough drawings of the same emoji,
and pictures of anything (doodles.py). The UNet sees each kind at other noise levels (diffusion.py).
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from weights.train import loop
from weights.train.captions import PLACES, Words, any_caption, caption, drawn_caption, synonyms
from weights.train.data import Pack
from weights.train.doodles import anything, drawings_of
from weights.train.pictures import Looks, Stylist, draw, on_white, pieces
from weights.train.profiles import Profile

SECOND = 0.15  # the share of drawings with a second subject
SHARES = (0.25, 0.25, 0.2, 0.3)  # in a batch of the autoencoder: plain, things, drawings, anything
MANY, PIECE = 100_000, 5_000  # pictures for which captions are worth processes; and of one task


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
    size = 4096 if device.type == "cuda" else 64
    for first in range(0, n, size):
        yield first, min(first + size, n)


class Writers:
    """Runs functions that write captions: at once, or many of them in processes of their own.

    A function is called as function(captions for each picture, seed, *arguments).
    """

    def __init__(self, captions: int, seed: int, many: bool):
        self.settings, self.jobs = (captions, seed), []
        # Not fork: the parent may have started CUDA.
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(mp_context=context) if many else None

    def start(self, function: Callable[..., np.ndarray], *arguments: object) -> None:
        if self.pool:
            self.jobs.append(self.pool.submit(function, *self.settings, *arguments).result)
        else:
            self.jobs.append(partial(function, *self.settings, *arguments))

    def results(self) -> list[np.ndarray]:
        """The results in the order of `start`."""
        results = [job() for job in self.jobs]
        if self.pool:
            self.pool.shutdown()
        return results


def looks_of(stylist: Stylist, variant: int, seed: int) -> Looks:
    """How variant number `variant` of every thing looks. Variant 0 is almost unchanged."""
    rng = np.random.default_rng([seed, 3, variant])
    return stylist(np.arange(len(stylist.code)), rng, plain=variant == 0)


def thing_tokens(captions: int, seed: int, rows: list[dict], variant: int) -> np.ndarray:
    """(N, captions, PLACES) uint16: captions of one variant of every thing."""
    looks, words, alike = looks_of(Stylist(rows), variant, seed), Words(), synonyms(rows)
    tokens = []
    for i, row in enumerate(rows):
        random = Random(f"{seed} {variant} {i}")
        look, other = looks.of(i), rows[looks.other[i]]
        texts = [
            caption(random, row, alike[row["codepoint"]], look, other) for _ in range(captions)
        ]
        tokens.append([*map(words, texts)])
    return np.array(tokens)


def drawing_tokens(
    captions: int, seed: int, rows: list[dict], subject: np.ndarray, other: np.ndarray, first: int
) -> np.ndarray:
    """(N, captions, PLACES) uint16: captions of the drawings from number `first` on.

    subject, other (N,): indices of the rows that are drawn; other is -1 for no second subject.
    """
    words, alike, tokens = Words(), synonyms(rows), []
    for i, (index, second) in enumerate(zip(subject, other, strict=True), first):
        random, row = Random(f"{seed} drawing {i}"), rows[index]
        companion = None if second < 0 else rows[second]
        texts = [
            drawn_caption(random, row, alike[row["codepoint"]], companion) for _ in range(captions)
        ]
        tokens.append([*map(words, texts)])
    return np.array(tokens)


def any_tokens(captions: int, seed: int, texts: list[str], first: int) -> np.ndarray:
    """(N, captions, PLACES) uint16: captions of pictures of anything, from number `first` on.

    texts: the name of the emoji that each picture may show.
    """
    words, random = cache(Words()), Random(f"{seed} anything {first}")
    return np.array([[words(any_caption(random, text)) for _ in range(captions)] for text in texts])


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
    stylist = Stylist(things.rows)
    kinds = (n * v, n * d, profile.anything)
    rng, start = np.random.default_rng([seed, 7]), n * v
    second = rng.integers(n, size=(n, d))
    has_second = (rng.random((n, d)) < SECOND) & stylist.social[:, None] & stylist.social[second]
    has_second &= stylist.code[second] != stylist.code[:, None]
    subject = np.arange(n * d) // d
    flat, flags = second.reshape(-1), has_second.reshape(-1)
    shown = rng.integers(len(pack.rows), size=profile.anything)

    writers = Writers(profile.captions, seed, many=sum(kinds) > MANY)
    for variant in range(v):
        writers.start(thing_tokens, things.rows, variant)
    for first in range(0, n * d, PIECE):
        piece = slice(first, first + PIECE)
        others = np.where(flags[piece], flat[piece], -1)
        writers.start(drawing_tokens, things.rows, subject[piece], others, first)
    for first in range(0, profile.anything, PIECE):
        texts = [pack.rows[i]["text"] for i in shown[first : first + PIECE]]
        writers.start(any_tokens, texts, first)

    pictures = torch.empty(sum(kinds), 3, size, size, dtype=torch.uint8, device=device)
    everything = np.arange(n)
    for variant in range(v):
        looks = looks_of(stylist, variant, seed)
        drawn = [
            to_bytes(draw(things, *piece))
            for piece in pieces(everything, looks, 1024 if device.type == "cuda" else 128)
        ]
        pictures[variant : n * v : v] = torch.cat(drawn)
    generator = torch.Generator(device).manual_seed(seed + 11)
    for first, last in chunks(n * d, device):
        subjects, companions = (torch.from_numpy(v[first:last]).to(device) for v in (subject, flat))
        both = torch.from_numpy(flags[first:last]).to(device)
        pictures[start + first : start + last] = drawings_of(
            things.rgba[subjects], things.rgba[companions], both, generator
        )
    start += n * d
    for first, last in chunks(profile.anything, device):
        index = torch.from_numpy(shown[first:last]).to(device)
        pictures[start + first : start + last] = anything(pack.rgba, index, generator)

    results = writers.results()
    # (v, n, captions, PLACES) -> picture i * v + variant
    of_things = np.stack(results[:v], axis=1).reshape(n * v, profile.captions, PLACES)
    tokens = np.concatenate([of_things, *results[v:]]).astype(np.int32)
    plain = torch.cat([to_bytes(on_white(part)) for part in pack.rgba.split(1024)])
    pool = Pool(pictures, torch.from_numpy(tokens).to(device), kinds, v, plain)
    if path:
        with loop.replacing(path) as part:
            made_of = [n, v, d, profile.anything, size, seed]
            torch.save({**vars(pool), "made_of": made_of}, part)
    return pool
