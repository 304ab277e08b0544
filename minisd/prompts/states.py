"""A weighted prompt (syntax.py) -> text states.

InvokeAI 2.2: ldm/modules/encoders/modules.py, WeightedFrozenCLIPEmbedder.
"""

import copy
import math
import warnings
from collections import OrderedDict
from dataclasses import replace

import torch
from torch import Tensor, nn

from minisd.prompts.syntax import Fragment, parse
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import LENGTH


@torch.inference_mode()
def text_states(sd: StableDiffusion, prompt: str, normalize: bool = True) -> tuple[Tensor, str]:
    """The text states (1, 77, C) of a weighted prompt, and its [words to avoid].

    img2img takes both, as `prompt` and `negative_prompt`. With `normalize`, the weights of a blend
    are scaled to sum to 1. Raises PromptError (a ValueError).
    """
    parts, negative = parse(prompt)
    weights = [part.weight for part in parts]
    total = sum(weights)
    if len(parts) == 1:
        weights = [1.0]
    elif normalize and abs(total) < 1e-9:
        warnings.warn("the blend's weights sum to 0: each part counts the same", stacklevel=2)
        weights = [1 / len(parts)] * len(parts)
    elif normalize:
        weights = [w / total for w in weights]
    states = [part_states(sd, part.fragments) for part in parts]
    blend = sum((w * z for w, z in zip(weights, states, strict=True)), torch.zeros(()))
    return blend, negative


def with_clip_skip(sd: StableDiffusion, clip_skip: int) -> StableDiffusion:
    """The same models, but the text states come from an earlier layer of the text encoder.

    clip_skip: 1 is the last layer, 2 the one before it, and so on; the final normalisation stays.
    AUTOMATIC1111: modules/sd_hijack_clip.py, encode_with_transformers. Raises ValueError.
    """
    if clip_skip == 1:
        return sd
    layers = list(next(sd.text_encoder.encoder.children()).children())
    if not 1 <= clip_skip <= len(layers):
        limit = f"the text encoder has {len(layers)} layers"
        raise ValueError(f"clip skip must be between 1 and {len(layers)}, not {clip_skip}: {limit}")
    shorter = copy.copy(sd.text_encoder)  # the modules are shared
    shorter._modules = dict(shorter._modules)
    shorter.encoder = nn.Sequential(OrderedDict(layers=nn.Sequential(*layers[: 1 - clip_skip])))
    return replace(sd, text_encoder=shorter)


def part_states(sd: StableDiffusion, fragments: list[Fragment]) -> Tensor:
    """(1, 77, C) of one side of a blend.

    A weight moves the states of its tokens away from those of the empty prompt, or towards them. A
    weight below 1 also mixes in the states of the prompt without that fragment, in the proportion
    tan((1 - weight) * pi/2): equally at 1/2, and nothing else at 0.
    """
    if all(fragment.weight == 1 for fragment in fragments):
        return sd.text_states("".join(fragment.text for fragment in fragments))
    states, weights = [weighted(sd, fragments)], [1.0]
    for i, fragment in enumerate(fragments):
        if fragment.weight < 1:
            states.append(weighted(sd, fragments[:i] + fragments[i + 1 :]))
            weights.append(math.tan((1 - max(fragment.weight, 1e-9)) * math.pi / 2))
    mix = sum((w * z for w, z in zip(weights, states, strict=True)), torch.zeros(()))
    return mix / sum(weights)


def weighted(sd: StableDiffusion, fragments: list[Fragment]) -> Tensor:
    """(1, 77, C): each token's states, moved away from the empty prompt's by its weight."""
    ids = [sd.tokenizer.ids(fragment.text) for fragment in fragments]
    tokens = sd.tokenizer.frame([i for row in ids for i in row])
    weights = [fragment.weight for fragment, row in zip(fragments, ids) for _ in row]
    weights = [1.0, *weights][: LENGTH - 1]
    weights = torch.tensor(weights + [1.0] * (LENGTH - len(weights)), device=sd.device)
    empty = sd.text_states("")
    return empty + weights[:, None] * (sd.text_encoder(torch.tensor([tokens])) - empty)
