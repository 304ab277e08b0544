"""InvokeAI's two syntaxes of prompts.

2.0      fire:2 tree:1          a blend; [words] are avoided. The rest is words, also + and ( ).
2.1 on   a big+ (red fire)1.3   weights, besides (minisd/prompts has them), and
         ("fire", "tree").blend(2, 1)

ldm/invoke/conditioning.py and prompt_parser.py.
"""

import re
import warnings

import torch
from torch import Tensor

from minisd.prompts.states import text_states
from minisd.prompts.syntax import PromptError
from minisd.stable_diffusion import StableDiffusion

BRACKETS = re.compile(r"\[(.*?)\]")
WEIGHTED = re.compile(r"((?:\\:|[^:])+)(?::\s*(-?(?:\d+\.?\d*|\.\d+))?\s*|$)")
BLEND = re.compile(r'\s*\(((?:\s*"(?:\\.|[^"\\])*"\s*,?)+)\)\.blend\(([^()]*)\)\s*')


def split_20(prompt: str) -> tuple[str, str]:
    """The prompt without its brackets, and the words in them."""
    return BRACKETS.sub(" ", prompt), " ".join(BRACKETS.findall(prompt))


def states_20(sd: StableDiffusion, prompt: str, normalize: bool = True) -> tuple[Tensor, str]:
    """(1, 77, C) and the words to avoid."""
    text, negative = split_20(prompt)
    parts = [
        (words.replace("\\:", ":"), float(weight or 1)) for words, weight in WEIGHTED.findall(text)
    ]
    return blended(sd, parts or [(text, 1.0)], normalize), negative


def states_22(sd: StableDiffusion, prompt: str, normalize: bool = True) -> tuple[Tensor, str]:
    """(1, 77, C) and the words to avoid. Raises PromptError."""
    text, negative = split_20(prompt)
    match = BLEND.fullmatch(text)
    if match is None:
        return text_states(sd, prompt, normalize)
    texts = [t.replace('\\"', '"') for t in re.findall(r'"((?:\\.|[^"\\])*)"', match[1])]
    words = [word.strip() for word in match[2].split(",")]
    if "no_normalize" in words:
        words.remove("no_normalize")
        normalize = False
    try:
        weights = [float(word) for word in words]
    except ValueError:
        weights = []
    if len(weights) != len(texts):
        problem = f".blend() of {len(texts)} prompts needs as many weights"
        raise PromptError(problem, prompt, match.start(2))
    states = [text_states(sd, t)[0] for t in texts]
    return mixed(states, weights, normalize), negative


def blended(sd: StableDiffusion, parts: list[tuple[str, float]], normalize: bool) -> Tensor:
    if len(parts) == 1:
        return sd.text_states(parts[0][0])
    return mixed([sd.text_states(t) for t, _ in parts], [w for _, w in parts], normalize)


def mixed(states: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    total = sum(weights)
    if normalize and abs(total) < 1e-9:
        warnings.warn("the blend's weights sum to 0: each part counts the same", stacklevel=2)
        weights, total = [1.0] * len(weights), float(len(weights))
    scale = 1 / total if normalize else 1.0
    return sum((scale * w * z for w, z in zip(weights, states, strict=True)), torch.zeros(()))
