"""Stage 2, words: the text encoder learns which caption belongs to which picture.

This is a small CLIP (Radford et al. 2021). In a batch, each caption must be more similar to its own
picture than to any other picture, and each picture more similar to its own caption. SD started with
a text encoder that had learned this from 400 million pictures, and never changed it. A UNet that
must teach the text encoder its words through noise takes many times as long, because few of its
errors are due to the words.

Only the text encoder is kept. The mean of a caption's end tokens represents the caption. End tokens
are also the padding: they fill 70 of the 77 places that the UNet reads.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.text_encoder import TextEncoder
from minisd.tokenizer import END
from weights.train import loop
from weights.train.cache import Cache
from weights.train.data import order
from weights.train.profiles import Profile, new_text_encoder


class Clip(nn.Module):
    def __init__(self, text_encoder: TextEncoder, width: int):
        super().__init__()
        self.text_encoder = text_encoder
        layers: list[nn.Module] = [nn.Conv2d(4, 64, 3, padding=1)]
        for c in (64, 128):
            half = nn.Conv2d(c, 2 * c, 3, stride=2, padding=1)
            layers += [nn.GroupNorm(32, c, eps=1e-5), nn.SiLU(), half]
        layers += [nn.GroupNorm(32, 256, eps=1e-5), nn.SiLU()]
        self.picture_encoder = nn.Sequential(*layers)
        self.of_picture = nn.Linear(256, width, bias=False)
        self.of_text = nn.Linear(width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """(B, 4, h, w), (B, 77) -> (B, B): the similarity of picture i and caption j, as logits."""
        latents = latents.to(self.of_text.weight.dtype)
        pictures = self.picture_encoder(latents).mean((2, 3))  # (B, 256)
        ends = (tokens == END)[..., None]  # (B, 77, 1)
        captions = (self.text_encoder(tokens) * ends).sum(1) / ends.sum(1)  # (B, width)
        pictures = F.normalize(self.of_picture(pictures).float(), dim=1)
        captions = F.normalize(self.of_text(captions).float(), dim=1)
        return self.log_scale.float().exp().clamp(max=100) * pictures @ captions.T


def clip_loss(clip: Clip, latents: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of both directions, and how often a picture's best caption is its own."""
    logits = clip(latents, tokens)
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return {"loss": loss, "right": (logits.argmax(1) == own).float().mean()}


def train_words(cache: Cache, profile: Profile, folder: Path, seed: int) -> TextEncoder:
    torch.manual_seed(seed)
    clip = Clip(new_text_encoder(profile), profile.text[0]).to(cache.latents.device)
    state = loop.State(clip)
    facts = profile.facts("words") | {"seed": seed, **cache.made_of}
    if (path := folder / "words.pt").exists():
        state.load(path, facts)
    passes, batch = loop.Passes(clip), profile.words.batch

    def losses_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, 6, step])
        return passes(clip_loss, [*cache.batch(order(cache.n, seed + 2, step, batch), rng)])

    loop.train("words", state, losses_of, profile, folder, facts)
    return state.average.text_encoder.requires_grad_(True)
