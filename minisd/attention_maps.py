"""Where the picture looks: how much attention each place pays to each word, step by step.

    with AttentionMaps(sd, "fire, 3d") as maps:
        img2img(sd, "fire, 3d", "drawing.png", observe=maps)
    maps.word("fire", step=3)              # (h, w), shares of attention in 0..1
    maps.steps[3].sum(dim=1)               # ones: a place's shares add up to 1

The UNet reads the prompt in its cross-attention layers (`...attn2`): at each place of the picture a
query is compared with the keys of the text's 77 places, and softmax makes shares of that. These are
computed once more here, in forward hooks, from the layer's own queries and keys; no code of the
model knows of it. Only the half of the batch that has the prompt is looked at.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ftfy
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from minisd.checkpoint import StableDiffusion
from minisd.tokenizer import LENGTH, Tokenizer

# Words of a person: letters and digits, joined by ' or -; or signs beyond ASCII, as an emoji is.
WORDS = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s!-~]+")


class Word(NamedTuple):
    """A word of the prompt, and the places of its tokens among the 77."""

    text: str
    places: list[int]


class AttentionMaps:
    """The observer. Attention is averaged over heads and over layers, each enlarged to the latent's
    size; an average of shares is shares again."""

    def __init__(self, sd: StableDiffusion, prompt: str | Sequence[str]):
        """prompt: as img2img takes it, in words, or in pieces that are tokenised separately, as
        prompts.py does with weighted ones."""
        pieces = [prompt] if isinstance(prompt, str) else list(prompt)
        self.unet = sd.unet
        self.words, self.n_tokens = words_of(sd.tokenizer, pieces)
        # (B, 2 + n_tokens, h, w) a step, on the CPU: the start token, the prompt's tokens, and the
        # end token with the padding after it, summed
        self.steps: list[Tensor] = []
        self.sigmas: list[float] = []
        self.shape: torch.Size | None = None  # of the run's latents; None: no run is observed
        self.calls: list[list[Tensor]] = []  # since the last step, of each call its layers' maps
        self.hooks: list[Any] = []

    def __enter__(self) -> "AttentionMaps":
        self.hooks.append(self.unet.register_forward_pre_hook(self.begin_call))
        for name, layer in self.unet.named_modules():
            if name.endswith("attn2"):
                self.hooks += hooks_on(layer, self.see_layer)
        return self

    def __exit__(self, *_: object) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def __call__(self, name: str, **values: Any) -> None:
        if name == "noised":
            self.steps, self.sigmas, self.calls = [], [], []
            self.shape = values["x"].shape
        elif name == "step":
            if self.calls:  # of a sampler's calls in a step, the first is the one at x
                self.steps.append(torch.stack(self.calls[0]).mean(dim=0).cpu())
                self.sigmas.append(values["step"].sigma)
            self.calls = []

    def begin_call(self, *_: object) -> None:
        if self.shape:
            self.calls.append([])

    def see_layer(self, q: Tensor, k: Tensor, heads: int) -> None:
        if not self.shape or len(self.calls) != 1:
            return
        b, _, h, w = self.shape
        shares = attention_shares(q[-b:], k[-b:], heads)  # with guidance the prompt's half is last
        end = 1 + self.n_tokens
        rest = shares[..., end:].sum(dim=-1, keepdim=True)
        shares = torch.cat([shares[..., :end], rest], dim=-1)  # (B, N, 2 + n_tokens)
        scale = round((h * w / shares.shape[1]) ** 0.5)  # the layer's resolution is lower by this
        small = rearrange(shares, "b (h w) m -> b m h w", h=h // scale)
        # bilinear weights sum to 1 at each place, so that shares still do
        self.calls[0].append(F.interpolate(small, (h, w), mode="bilinear", align_corners=False))

    def word(self, word: str | int, step: int | None = None) -> Tensor:
        """(h, w): the share of attention that goes to a word (all its tokens), in one step or on
        average over all. A word that stands there twice counts together; an int is its index."""
        if isinstance(word, int):
            found = [self.words[word]]
        elif not (found := [w for w in self.words if w.text.lower() == word.lower()]):
            known = ", ".join(w.text for w in self.words)
            raise ValueError(f"{word!r} is no word of the prompt; there are {known}")
        if not self.steps:
            raise ValueError("no step was observed: pass observe=maps, inside of the with block")
        maps = torch.stack(self.steps).mean(dim=0) if step is None else self.steps[step]
        return maps[0, [place for w in found for place in w.places]].sum(dim=0)


def attention_shares(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)), averaged over heads: q (B, N, C), k (B, M, C) -> (B, N, M)."""
    q, k = (rearrange(y.float(), "b n (h d) -> b h n d", h=heads) for y in (q, k))
    shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return reduce(shares, "b h n m -> b n m", "mean")


def hooks_on(layer: nn.Module, see: Any) -> list[Any]:
    """Forward hooks on a CrossAttention that call see(q, k, heads) each time that it has run."""
    seen = {}
    return [
        layer.to_q.register_forward_hook(lambda _, given, q: seen.update(q=q.detach())),
        layer.to_k.register_forward_hook(lambda _, given, k: seen.update(k=k.detach())),
        layer.register_forward_hook(lambda *_: see(seen.pop("q"), seen.pop("k"), layer.heads)),
    ]


def words_of(tokenizer: Tokenizer, pieces: list[str]) -> tuple[list[Word], int]:
    """The words of a prompt with the places of their tokens, and how many tokens there are.

    A token belongs to the word in which its first letter stands. Punctuation belongs to none; what
    is cut off, beyond the 75th token, is left out.
    """
    words: list[Word] = []
    place = 1  # 0 is the start token
    for piece in pieces:
        text = ftfy.fix_text(piece)  # as the tokenizer does, so that places in the text agree
        found = [(match, Word(match[0], [])) for match in WORDS.finditer(text)]
        for start, _ in tokenizer.bpe.encode(text, add_special_tokens=False).offsets:
            for match, word in found:
                if match.start() <= start < match.end() and place < LENGTH - 1:
                    word.places.append(place)
            place += 1
        words += [word for _, word in found if word.places]
    return words, min(place, LENGTH - 1) - 1
