"""The network under another program's rules: its timesteps, its texts, its guidance."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minisd.stable_diffusion import StableDiffusion

# Text states (1, 77 k, C), each with the last call (0 is the first) at which it is used.
Timeline = list[tuple[float, Tensor]]


@dataclass
class Texts:
    """What the network reads. Prompts may have several parts, and change during the run."""

    parts: list[tuple[float, Timeline]]  # the prompt's, with their weights; usually one of weight 1
    uncond: Timeline
    tokens: list[Tensor] = field(default_factory=list)  # rows (n, 77) as they were encoded

    def for_call(self, call: int) -> tuple[list[float], list[Tensor], Tensor]:
        """(weights, contexts, uncond) of a call."""
        contexts = [state_at(timeline, call) for _, timeline in self.parts]
        return [weight for weight, _ in self.parts], contexts, state_at(self.uncond, call)


def state_at(timeline: Timeline, call: int) -> Tensor:
    return next((state for end, state in timeline if call <= end), timeline[-1][1])


def constant(state: Tensor) -> Timeline:
    """A text that does not change."""
    return [(math.inf, state)]


class Network:
    """`predict_eps(x, sigma) -> eps`. It counts its calls, because prompts may depend on them.

    needs_uncond  (call, sigma) -> whether the negative prompt counts in this call
    """

    def __init__(
        self,
        sd: StableDiffusion,
        texts: Texts,
        guidance: float,
        timestep: Callable[[float], float],
        needs_uncond: Callable[[int, float], bool],
    ):
        self.sd, self.texts, self.guidance = sd, texts, guidance
        self.timestep, self.needs_uncond = timestep, needs_uncond
        self.calls = 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        weights, contexts, uncond = self.texts.for_call(self.calls)
        guided = self.needs_uncond(self.calls, sigma)
        self.calls += 1
        states = same_length([uncond, *contexts] if guided else contexts)
        t = torch.full((len(x) * len(states),), self.timestep(sigma), device=x.device)
        context = torch.cat([state.expand(len(x), -1, -1) for state in states])
        x_in = x / (sigma**2 + 1) ** 0.5
        eps = self.sd.unet(x_in.repeat(len(states), 1, 1, 1), t, context).chunk(len(states))
        base, scale = (eps[0], self.guidance) if guided else (eps[0], 1.0)
        if len(eps) == 1:
            return base
        total = base
        for weight, part in zip(weights, eps[1:] if guided else eps, strict=True):
            total = total + weight * scale * (part - base)
        return total


def same_length(states: Sequence[Tensor]) -> list[Tensor]:
    """Text states repeated to a common length. Attention to repeated states is the same."""
    length = math.lcm(*(state.shape[1] for state in states))
    return [state.repeat(1, length // state.shape[1], 1) for state in states]


# ---- text states ---------------------------------------------------------------------------------


def encode_tokens(sd: StableDiffusion, tokens: Tensor, clip_skip: int = 1) -> Tensor:
    """(B, 77) ids -> (B, 77, C): the states after the last layer but clip_skip - 1, normalised."""
    encoder = sd.text_encoder
    layers = list(encoder.encoder.layers)
    if clip_skip > len(layers):
        raise ValueError(f"clip_skip {clip_skip}: the text encoder has only {len(layers)} layers")
    states = encoder.embeddings(tokens.to(encoder.final_layer_norm.weight.device))
    for layer in layers[: len(layers) - clip_skip + 1]:
        states = layer(states)
    return encoder.final_layer_norm(states)


def plain_texts(sd: StableDiffusion, prompt: str, negative: str, clip_skip: int = 1) -> Texts:
    """Prompts without syntax, cut at 75 tokens. clip_skip is not for the negative one."""
    tokens = sd.tokenizer([negative, prompt])
    uncond, cond = encode_tokens(sd, tokens[:1]), encode_tokens(sd, tokens[1:], clip_skip)
    return Texts([(1.0, constant(cond))], constant(uncond), [tokens[:1], tokens[1:]])
