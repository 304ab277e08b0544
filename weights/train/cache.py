"""The latents of the pictures that are drawn before training, for stages 2 and 3."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.tokenizer import END, LENGTH
from minisd.vae import VAE
from weights.train.autoencoder import latents_hash
from weights.train.pool import Pool


@dataclass
class Cache:
    """The latents of a pool's pictures; fields as there."""

    latents: Tensor  # (T, 4, h, w) float16
    tokens: Tensor
    kinds: tuple[int, int, int]
    variants: int
    made_of: dict  # the autoencoder's hash, and counts

    @property
    def n(self) -> int:
        """How many pictures show things."""
        return self.kinds[0]

    def take(self, index: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """x0 (B, 4, h, w) and tokens (B, 77) of the pictures and captions with these indices."""
        tokens = self.tokens[index, caption].long()
        tokens = F.pad(tokens, (0, LENGTH - tokens.shape[1]), value=END)
        return self.latents[index].float(), tokens

    def batch(self, which: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same for things `which`, each with a random caption."""
        caption = rng.integers(self.tokens.shape[1], size=len(which))
        device = self.latents.device
        return self.take(*(torch.from_numpy(v).to(device) for v in (which, caption)))


@torch.no_grad()
def encode_all(pool: Pool, vae: VAE, seed: int) -> Cache:
    device, latents = pool.pictures.device, []
    for batch in pool.pictures.split(1024 if device.type == "cuda" else 128):
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(vae.encode(batch.float() / 127.5 - 1).to(torch.float16))
    made_of = {"vae": latents_hash(vae), "pictures": len(pool.pictures), "seed": seed}
    return Cache(torch.cat(latents), pool.tokens, pool.kinds, pool.variants, made_of)
