"""Attention to words: how much attention each place of the picture pays to each word, by step.

    with AttentionMaps(sd, "fire, 3d") as maps:
        img2img(sd, "fire, 3d", "drawing.png", observe=maps)
    maps.word("fire", step=3)              # (h, w), shares of attention in 0..1
    maps.steps[3].sum(dim=1)               # ones: the shares of a place sum to 1

The UNet reads the prompt in its cross-attention layers (`...attn2`). At each place of the picture a
query is compared with the keys of the text's 77 places, and a softmax turns the results into
shares. Forward hooks compute these shares once more, from the layer's own queries and keys; the
model's code does not know of them. Only the half of the batch that has the prompt is used.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ftfy
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from minisd.observe.watch import Watcher
from minisd.run import Event, Noised
from minisd.samplers import Step
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import LENGTH, Tokenizer

# Words as people see them: letters and digits, joined by ' or -; or signs beyond ASCII, as emoji.
WORDS = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s!-~]+")


class Word(NamedTuple):
    """A word of the prompt, and the places of its tokens among the 77."""

    text: str
    places: list[int]


class AttentionMaps(Watcher):
    """The observer. It averages attention over heads and layers, enlarged to the latent's size.

    An average of shares is a share again.
    """

    def __init__(self, sd: StableDiffusion, prompt: str | Sequence[str]):
        """prompt: the words that img2img draws, or pieces of them that are tokenized separately, as
        those of a weighted prompt are."""
        super().__init__(sd)
        pieces = [prompt] if isinstance(prompt, str) else list(prompt)
        self.words, self.n_tokens = words_of(sd.tokenizer, pieces)
        # For each step (B, 2 + n_tokens, h, w), on the CPU: the start token, the prompt's tokens,
        # and the sum of the end token and the padding after it.
        self.steps: list[Tensor] = []
        self.sigmas: list[float] = []
        self.shape: torch.Size | None = None  # (B, 4, h, w) of the run; None: not observing a run
        self.calls: list[list[Tensor]] = []  # since the last step, each call's maps by layer

    def hooks_on(self, unet: nn.Module) -> list[RemovableHandle]:
        hooks = [unet.register_forward_pre_hook(self.start_call)]
        for name, layer in unet.named_modules():
            if name.endswith("attn2"):
                hooks += layer_hooks(layer, self.see_layer)
        return hooks

    def __call__(self, event: Event) -> None:
        if isinstance(event, Noised):
            self.steps, self.sigmas, self.calls = [], [], []
            self.shape = event.x.shape
        elif isinstance(event, Step):
            if self.calls:  # a sampler's first call in a step is the one at x
                self.steps.append(torch.stack(self.calls[0]).mean(dim=0).cpu())
                self.sigmas.append(event.sigma)
            self.calls = []

    def start_call(self, *_: object) -> None:
        if self.shape:
            self.calls.append([])

    def see_layer(self, q: Tensor, k: Tensor, heads: int) -> None:
        if not self.shape or len(self.calls) != 1:
            return
        b, _, h, w = self.shape
        # With guidance, the half of the batch that has the prompt comes last.
        shares = attention_shares(q[-b:], k[-b:], heads)
        end = 1 + self.n_tokens
        rest = shares[..., end:].sum(dim=-1, keepdim=True)
        shares = torch.cat([shares[..., :end], rest], dim=-1)  # (B, N, 2 + n_tokens)
        scale = round((h * w / shares.shape[1]) ** 0.5)  # the layer's resolution is lower by this
        small = rearrange(shares, "b (h w) m -> b m h w", h=h // scale)
        # Bilinear weights sum to 1 at each place, and so the shares still do.
        self.calls[0].append(F.interpolate(small, (h, w), mode="bilinear", align_corners=False))

    def word(self, word: str | int, step: int | None = None) -> Tensor:
        """(h, w): the share of attention to a word (all its tokens), for the first picture.

        step: None is the average over all steps. A word that occurs twice in the prompt counts
        together; an int is an index into `words`. Raises ValueError for an unknown word.
        """
        if isinstance(word, int):
            matches = [self.words[word]]
        else:
            matches = [w for w in self.words if w.text.lower() == word.lower()]
        if not matches:
            known = ", ".join(w.text for w in self.words)
            raise ValueError(f"the prompt has no word {word!r}; its words are {known}")
        if not self.steps:
            raise ValueError("no step was observed: pass observe=maps, inside the with block")
        maps = torch.stack(self.steps).mean(dim=0) if step is None else self.steps[step]
        return maps[0, [place for match in matches for place in match.places]].sum(dim=0)


def attention_shares(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)), averaged over heads: q (B, N, C), k (B, M, C) -> (B, N, M)."""
    q, k = (rearrange(y.float(), "b n (h d) -> b h n d", h=heads) for y in (q, k))
    shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return reduce(shares, "b h n m -> b n m", "mean")


def layer_hooks(
    layer: nn.Module, see: Callable[[Tensor, Tensor, int], None]
) -> list[RemovableHandle]:
    """Forward hooks on a CrossAttention: they call see(q, k, heads) after each of its calls."""
    inputs: dict[str, Tensor] = {}
    return [
        layer.to_q.register_forward_hook(lambda _, args, q: inputs.update(q=q.detach())),
        layer.to_k.register_forward_hook(lambda _, args, k: inputs.update(k=k.detach())),
        layer.register_forward_hook(lambda *_: see(inputs.pop("q"), inputs.pop("k"), layer.heads)),
    ]


def words_of(tokenizer: Tokenizer, pieces: list[str]) -> tuple[list[Word], int]:
    """The words of a prompt with the places of their tokens, and the number of tokens.

    A token belongs to the word that holds its first letter. Punctuation belongs to no word. Words
    beyond the 75th token are left out, because the network does not see them.
    """
    words: list[Word] = []
    place = 1  # 0 is the start token
    for piece in pieces:
        text = ftfy.fix_text(piece)  # as the tokenizer does, so that places in the text agree
        matches = [(match, Word(match[0], [])) for match in WORDS.finditer(text)]
        for start, _ in tokenizer.bpe.encode(text, add_special_tokens=False).offsets:
            for match, word in matches:
                if match.start() <= start < match.end() and place < LENGTH - 1:
                    word.places.append(place)
            place += 1
        words += [word for _, word in matches if word.places]
    return words, min(place, LENGTH - 1) - 1
