"""ComfyUI's prompts: weights in round brackets, in chunks of 75 tokens.

    (words) (words:1.3)     weight 1.1 times that outside; or 1.3, whatever is outside
    \\( \\)                   the character itself

A token's states move away from those of the empty prompt by its weight. comfy/sd1_clip.py.
"""

import torch
from torch import Tensor

from minisd.dialects.network import Texts, constant, encode_tokens
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import END, LENGTH, START

CHUNK = 75
LONG_GROUP = 8  # tokens: such a piece of text may be broken at a chunk's end
OPENING, CLOSING = "\0\2", "\0\1"  # stand for escaped brackets


def token_weights(text: str, weight: float = 1.0) -> list[tuple[str, float]]:
    """(text, weight) in order. Brackets that are not closed are plain characters."""
    pieces: list[tuple[str, float]] = []
    for part in cut_brackets(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            pieces.append((part, weight))
            continue
        inside, inner_weight = part[1:-1], weight * 1.1
        colon = inside.rfind(":")
        if colon > 0:
            try:
                inner_weight = float(inside[colon + 1 :])
                inside = inside[:colon]
            except ValueError:
                pass  # the colon is a character
        pieces += token_weights(inside, inner_weight)
    return pieces


def cut_brackets(text: str) -> list[str]:
    """The text cut before and after each outermost pair of brackets."""
    parts, current, depth = [], "", 0
    for char in text:
        if char == "(":
            if depth == 0 and current:
                parts.append(current)
                current = ""
            depth += 1
            current += char
        elif char == ")":
            depth -= 1
            current += char
            if depth == 0:
                parts.append(current)
                current = ""
        else:
            current += char
    return [*parts, current] if current else parts


def pieces_of(text: str) -> list[tuple[str, float]]:
    """token_weights, with escaped brackets as characters."""
    hidden = text.replace("\\)", CLOSING).replace("\\(", OPENING)
    return [
        (words.replace(CLOSING, ")").replace(OPENING, "("), weight)
        for words, weight in token_weights(hidden)
    ]


def rows_of(sd: StableDiffusion, text: str) -> tuple[Tensor, Tensor]:
    """(k, 77) ids and their weights."""
    rows: list[tuple[list[int], list[float]]] = [([], [])]
    for words, weight in pieces_of(text):
        group = sd.tokenizer.ids(words)
        while group:
            ids, weights = rows[-1]
            room = CHUNK - len(ids)
            if len(group) <= room:
                taken = len(group)
            elif len(group) >= LONG_GROUP:
                taken = room
            else:  # a short piece of text stays together
                rows.append(([], []))
                continue
            ids += group[:taken]
            weights += [weight] * taken
            group = group[taken:]
            if group:
                rows.append(([], []))
    fills = [CHUNK - len(ids) + 1 for ids, _ in rows]
    tokens = [[START, *ids, *[END] * fill] for (ids, _), fill in zip(rows, fills)]
    values = [[1.0, *weights, *[1.0] * fill] for (_, weights), fill in zip(rows, fills)]
    return torch.tensor(tokens), torch.tensor(values)


def states_of(sd: StableDiffusion, text: str, clip_skip: int) -> tuple[Tensor, Tensor]:
    """(1, 77 k, C), and the token rows."""
    tokens, weights = rows_of(sd, text)
    if (weights == 1).all():
        states = encode_tokens(sd, tokens, clip_skip)
    else:
        empty = torch.tensor([[START, *[END] * (LENGTH - 1)]])
        states, base = encode_tokens(sd, torch.cat([tokens, empty]), clip_skip).split(
            [len(tokens), 1]
        )
        states = (states - base) * weights[..., None].to(sd.device) + base
    return states.reshape(1, -1, states.shape[-1]), tokens


def texts(sd: StableDiffusion, prompt: str, negative: str, clip_skip: int = 1) -> Texts:
    cond, tokens = states_of(sd, prompt, clip_skip)
    uncond, negative_tokens = states_of(sd, negative, clip_skip)
    return Texts([(1.0, constant(cond))], constant(uncond), [negative_tokens, tokens])
