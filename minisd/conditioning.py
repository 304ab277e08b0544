"""A prompt with weights (minisd.prompts) -> text states.

InvokeAI 2.2: ldm/modules/encoders/modules.py, WeightedFrozenCLIPEmbedder.
"""

import math
import warnings

import torch
from torch import Tensor

from minisd.checkpoint import StableDiffusion
from minisd.prompts import Fragment, parse


@torch.inference_mode()
def text_states(
    sd: StableDiffusion, prompt: str, normalize: bool = True
) -> tuple[Tensor, str | Tensor]:
    """What `img2img` takes as prompt and negative_prompt: (1, 77, C) and the words in brackets.

    normalize: a blend's weights are scaled to sum to 1. Raises PromptError (a ValueError).
    """
    parts, negative = parse(prompt)
    weights = [part.weight for part in parts]
    total = sum(weights)
    if normalize and len(parts) > 1:
        if abs(total) < 1e-9:
            warnings.warn("the blend's weights sum to 0: each part counts the same", stacklevel=2)
        weights = [w / total if abs(total) >= 1e-9 else 1 / len(parts) for w in weights]
    elif len(parts) == 1:
        weights = [1.0]
    return sum(w * part_states(sd, part.fragments) for w, part in zip(weights, parts)), negative


def part_states(sd: StableDiffusion, fragments: list[Fragment]) -> Tensor:
    """(1, 77, C). A weight moves its tokens' states away from those of the empty prompt, or towards
    them. A weight below 1 also mixes in the states of the prompt without the fragment, by
    tan((1 - weight) * pi/2): as much at 1/2, nothing else at 0."""
    if all(fragment.weight == 1 for fragment in fragments):
        return sd.text_states("".join(fragment.text for fragment in fragments))
    states, weights = [weighted(sd, fragments)], [1.0]
    for i, fragment in enumerate(fragments):
        if fragment.weight < 1:
            states.append(weighted(sd, fragments[:i] + fragments[i + 1 :]))
            weights.append(math.tan((1 - max(fragment.weight, 1e-9)) * math.pi / 2))
    return sum(w * z for w, z in zip(weights, states)) / sum(weights)


def weighted(sd: StableDiffusion, fragments: list[Fragment]) -> Tensor:
    ids = [sd.tokenizer.ids(fragment.text) for fragment in fragments]
    tokens = sd.tokenizer.frame([i for row in ids for i in row])
    weights = [fragment.weight for fragment, row in zip(fragments, ids) for _ in row][:75]
    weights = torch.tensor([1.0, *weights] + [1.0] * (76 - len(weights)), device=sd.device)
    empty = sd.text_states("")
    return empty + weights[:, None] * (sd.text_encoder(torch.tensor([tokens])) - empty)
