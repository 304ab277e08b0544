"""Stage 2, words: the text encoder learns which caption belongs to which picture.

This is CLIP (Radford et al. 2021), small. In a batch each caption shall be more like its own
picture than like any other, and the other way round. SD was given a text encoder that had learned
so from 400 million pictures, and kept it as it was. A UNet that has to teach a text encoder its
words by way of noise takes many times as long: of what it gets wrong little is the words' fault.

Only the text encoder is kept. What stands for the caption is the mean of its end tokens, which are
also its padding: 70 of the 77 places that the UNet will look at.
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
        """(B, 4, h, w), (B, 77) -> (B, B): how like picture i and caption j are, as logits."""
        seen = self.picture_encoder(latents.to(self.of_text.weight.dtype)).mean((2, 3))  # (B, 256)
        ends = (tokens == END)[..., None]  # (B, 77, 1)
        said = (self.text_encoder(tokens) * ends).sum(1) / ends.sum(1)  # (B, width)
        pictures = F.normalize(self.of_picture(seen).float(), dim=1)
        captions = F.normalize(self.of_text(said).float(), dim=1)
        return self.log_scale.float().exp().clamp(max=100) * pictures @ captions.T


def clip_loss(clip: Clip, latents: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of both directions, and how often a picture finds its own caption first."""
    logits = clip(latents, tokens)
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return {"loss": loss, "found": (logits.argmax(1) == own).float().mean()}


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
