"""Latents of every picture in several variants, each with several captions: encoded once, and kept
in a file that may be deleted."""

from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.tokenizer import END, LENGTH
from minisd.vae import VAE
from weights.train import loop
from weights.train.autoencoder import latents_hash, pieces
from weights.train.captions import Words, caption, synonyms
from weights.train.data import Pack
from weights.train.pictures import Stylist, draw
from weights.train.profiles import Profile


@dataclass
class Cache:
    latents: Tensor  # (N, variants, 4, h, w) float16; variant 0 is the plain picture, or almost
    tokens: Tensor  # (N, variants, captions, PLACES) int32
    made_of: dict  # the autoencoder's hash, and counts

    @property
    def n(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> "Cache":
        return Cache(self.latents.to(device), self.tokens.to(device), self.made_of)

    def batch(self, which: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """x0 (B, 4, h, w) and tokens (B, 77) of the pictures `which`, variants and captions drawn.
        The plain variant comes two times in three: details are learned where little else varies."""
        (variants, captions), b = self.tokens.shape[1:3], len(which)
        variant = rng.integers(variants, size=b) * (rng.random(b) > 0.6)
        caption = rng.integers(captions, size=b)
        at = [torch.from_numpy(v).to(self.latents.device) for v in (which, variant, caption)]
        ids = self.tokens[at[0], at[1], at[2]].long()
        ids = F.pad(ids, (0, LENGTH - ids.shape[1]), value=END)
        return self.latents[at[0], at[1]].float(), ids


@torch.no_grad()
def encode_all(pack: Pack, vae: VAE, profile: Profile, path: Path, seed: int) -> Cache:
    """Read from `path`; made anew, and kept there, if autoencoder or profile changed."""
    n, v = len(pack.rows), profile.variants
    device, everything = pack.rgba.device, np.arange(n)
    made_of = {"vae": latents_hash(vae), "n": n, "variants": v, "seed": seed}
    if path.exists():
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["made_of"] == made_of:
            return Cache(**kept).to(device)
    stylist, words, alike = Stylist(pack.rows), Words(), synonyms(pack.rows)
    latents, tokens = [], []
    for variant in range(v):
        looks = stylist(everything, np.random.default_rng([seed, 3, variant]), plain=variant == 0)
        coded = []
        for some, part in pieces(everything, looks, 128):
            with torch.autocast(device.type, torch.bfloat16):
                coded.append(vae.encode(draw(pack, some, part)).to(torch.float16).cpu())
        latents.append(torch.cat(coded))
        said = np.empty((n, profile.captions), object)
        for i, row in enumerate(pack.rows):
            rng = Random(f"{seed} {variant} {i}")
            look, other = looks.of(i), pack.rows[looks.other[i]]
            for k in range(profile.captions):
                text = caption(rng, row, alike[row["codepoint"]], look, other)
                said[i, k] = words(text)
        tokens.append(torch.from_numpy(np.array(said.tolist()).astype(np.int32)))
        print(f"latents      variant {variant + 1} of {v}", flush=True)
    cache = Cache(torch.stack(latents, 1), torch.stack(tokens, 1), made_of)
    loop.save(vars(cache), path)
    return cache.to(device)
