"""The cache: latents of every picture in several variants, each variant with several captions.

They are computed once and kept in a file. The file may be deleted: it is then made again.
"""

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
from weights.train.captions import PLACES, Words, caption, synonyms
from weights.train.data import Pack
from weights.train.pictures import Stylist, draw
from weights.train.profiles import Profile


@dataclass
class Cache:
    latents: Tensor  # (N, variants, 4, h, w) float16; variant 0 is the almost plain picture
    tokens: Tensor  # (N, variants, captions, PLACES) int32
    made_of: dict  # the autoencoder's hash, and counts: if they change, the cache is outdated

    @property
    def n(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device) -> "Cache":
        return Cache(self.latents.to(device), self.tokens.to(device), self.made_of)

    def batch(self, which: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """x0 (B, 4, h, w) and tokens (B, 77) of the pictures `which`: a random variant and caption.

        Two times in three it is the plain variant: details are learned where little else varies.
        """
        (variants, captions), b = self.tokens.shape[1:3], len(which)
        variant = rng.integers(variants, size=b)
        variant = np.where(rng.random(b) > 0.6, variant, 0)
        caption_index = rng.integers(captions, size=b)
        picture, variant, caption_index = (
            torch.from_numpy(index).to(self.latents.device)
            for index in (which, variant, caption_index)
        )
        tokens = self.tokens[picture, variant, caption_index].long()
        tokens = F.pad(tokens, (0, LENGTH - tokens.shape[1]), value=END)
        return self.latents[picture, variant].float(), tokens


@torch.no_grad()
def encode_all(pack: Pack, vae: VAE, profile: Profile, path: Path, seed: int) -> Cache:
    """The cache in the file `path`; made and written there if it is missing or outdated."""
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
        encoded = []
        for piece in pieces(everything, looks, 128):
            with torch.autocast(device.type, torch.bfloat16):
                encoded.append(vae.encode(draw(pack, *piece)).to(torch.float16).cpu())
        latents.append(torch.cat(encoded))
        ids = np.empty((n, profile.captions, PLACES), np.int32)
        for i, row in enumerate(pack.rows):
            rng = Random(f"{seed} {variant} {i}")
            look, other = looks.of(i), pack.rows[looks.other[i]]
            for k in range(profile.captions):
                ids[i, k] = words(caption(rng, row, alike[row["codepoint"]], look, other))
        tokens.append(torch.from_numpy(ids))
        print(f"latents      variant {variant + 1} of {v}", flush=True)
    cache = Cache(torch.stack(latents, 1), torch.stack(tokens, 1), made_of)
    with loop.replacing(path) as part:
        torch.save(vars(cache), part)
    return cache.to(device)
