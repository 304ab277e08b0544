"""AUTOMATIC1111's prompts: AND, editing, attention, BREAK, and chunks of 75 tokens.

    a AND b :0.6                  two prompts, each with a weight
    [from:to:0.5] [to:3] [a::3]   a prompt that changes at a share of the steps, or at a step
    [one|other]                   one at a step, the other at the next
    (words) [words] (words:1.3)   weight 1.1, 1 / 1.1, 1.3; nested weights multiply
    a BREAK b                     b starts a new chunk

modules/prompt_parser.py, sd_hijack_clip.py and sd_emphasis.py.
"""

import math
import re
from typing import Any

import torch
from torch import Tensor

from minisd.dialects.network import Texts, Timeline, constant, encode_tokens
from minisd.stable_diffusion import StableDiffusion
from minisd.tokenizer import END, LENGTH, START

CHUNK = 75
COMMA = 267  # the token of a comma at a word's end
WHEN = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
ATTENTION = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:", re.S)
Piece = tuple[str, float]


# ---- AND -----------------------------------------------------------------------------------------


def cut_and(prompt: str) -> list[tuple[str, float]]:
    """The parts between AND, with their weights."""
    parts = []
    for text in re.split(r"\bAND\b", prompt):
        match = re.fullmatch(r"(.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*", text, re.S)
        assert match is not None  # it fits every text
        parts.append((match[1], float(match[2] or 1)))
    return parts


# ---- editing -------------------------------------------------------------------------------------


def prompt_schedule(prompt: str, steps: int, old: bool = False) -> list[tuple[int, str]]:
    """(last step, text), in order: what the prompt says up to each step.

    old: numbers below 1 are shares of the steps, whether they have a point or not
    """
    tree = parse_editing(prompt, steps, old)
    ends = sorted({steps, *changes(tree, steps)})
    return [(end, text_at(tree, end)) for end in ends]


# A tree is a list of texts and of these: ("edit", before, after, when), ("turns", [trees]).
Tree = list[Any]


def parse_editing(text: str, steps: int, old: bool) -> Tree:
    tree: Tree = []
    i = start = 0
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        if text[i] == "[" and (end := closing(text, i)) is not None:
            node = edit_of(text[i + 1 : end], steps, old)
            if node is not None:
                tree += [text[start:i], node]
                i = start = end + 1
                continue
        i += 1
    return [*tree, text[start:]]


def closing(text: str, opening: int) -> int | None:
    """The place of the bracket that closes the one at `opening`."""
    stack = []
    i = opening
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in "[(":
            stack.append(text[i])
        elif text[i] in "])":
            if not stack or stack.pop() != {"]": "[", ")": "("}[text[i]]:
                return None
            if not stack:
                return i
        i += 1
    return None


def edit_of(inside: str, steps: int, old: bool) -> tuple[Any, ...] | None:
    """The edit that stands between square brackets; None if it is none."""
    turns, fields = cut_outside(inside, "|"), cut_outside(inside, ":")
    if len(turns) > 1:
        if len(cut_outside(turns[-1], ":")) > 1:
            return None
        return ("turns", [parse_editing(turn, steps, old) for turn in turns])
    if len(fields) not in (2, 3) or not WHEN.fullmatch(fields[-1]):
        return None
    number = float(fields[-1])
    is_share = number < 1 if old else "." in fields[-1]
    when = min(steps, int(number * steps if is_share else number))
    before, after = ("", fields[0]) if len(fields) == 2 else fields[:2]
    return ("edit", parse_editing(before, steps, old), parse_editing(after, steps, old), when)


def cut_outside(text: str, mark: str) -> list[str]:
    """The text cut at the marks that are outside all brackets."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in "[(":
            depth += 1
        elif text[i] in "])":
            depth -= 1
        elif text[i] == mark and depth == 0:
            parts.append(text[start:i])
            start = i + 1
        i += 1
    return [*parts, text[start:]]


def changes(tree: Tree, steps: int) -> set[int]:
    """The last steps of the texts that a tree goes through."""
    ends: set[int] = set()
    for node in tree:
        if isinstance(node, str):
            continue
        if node[0] == "turns":
            ends |= set(range(1, steps + 1))
            continue
        _, before, after, when = node
        ends |= {when} if when >= 1 else set()
        ends |= changes(before, steps) | changes(after, steps)
    return ends


def text_at(tree: Tree, step: int) -> str:
    words = []
    for node in tree:
        if isinstance(node, str):
            words.append(node)
        elif node[0] == "turns":
            words.append(text_at(node[1][(step - 1) % len(node[1])], step))
        else:
            words.append(text_at(node[1] if step <= node[3] else node[2], step))
    return "".join(words)


# ---- attention -----------------------------------------------------------------------------------


def parse_attention(text: str) -> list[Piece]:
    """(text, weight) in order. BREAK is ("BREAK", -1)."""
    pieces: list[list[Any]] = []
    rounds: list[int] = []
    squares: list[int] = []

    def multiply(start: int, factor: float) -> None:
        for piece in pieces[start:]:
            piece[1] *= factor

    for match in ATTENTION.finditer(text):
        mark, weight = match[0], match[1]
        if mark.startswith("\\"):
            pieces.append([mark[1:], 1.0])
        elif mark == "(":
            rounds.append(len(pieces))
        elif mark == "[":
            squares.append(len(pieces))
        elif weight is not None and rounds:
            multiply(rounds.pop(), float(weight))
        elif mark == ")" and rounds:
            multiply(rounds.pop(), 1.1)
        elif mark == "]" and squares:
            multiply(squares.pop(), 1 / 1.1)
        else:
            for i, part in enumerate(re.split(r"\s*\bBREAK\b\s*", mark)):
                pieces += [["BREAK", -1]] if i else []
                pieces.append([part, 1.0])
    for start in rounds:
        multiply(start, 1.1)
    for start in squares:
        multiply(start, 1 / 1.1)
    merged: list[list[Any]] = []
    for words, weight in pieces or [["", 1.0]]:
        if merged and merged[-1][1] == weight:
            merged[-1][0] += words
        else:
            merged.append([words, weight])
    return [(words, weight) for words, weight in merged]


# ---- chunks --------------------------------------------------------------------------------------

Chunk = tuple[list[int], list[float]]  # 77 ids and their weights


def chunks_of(
    sd: StableDiffusion, text: str, backtrack: int = 20, emphasis: str = "Original"
) -> list[Chunk]:
    """The text in chunks of 75 tokens, each between START and END, and filled with END.

    Where a chunk is full and a comma lies at most `backtrack` tokens back, what follows the comma
    moves to the next chunk.
    """
    chunks: list[Chunk] = []
    ids: list[int] = []
    weights: list[float] = []
    last_comma = -1

    def finish() -> None:
        nonlocal ids, weights, last_comma
        rest = CHUNK - len(ids)
        chunks.append(([START, *ids, *[END] * (rest + 1)], [1.0, *weights, *[1.0] * (rest + 1)]))
        ids, weights, last_comma = [], [], -1

    pieces = [(text, 1.0)] if emphasis == "None" else parse_attention(text)
    for words, weight in pieces:
        if words == "BREAK" and weight == -1:
            finish()
            continue
        for token in sd.tokenizer.ids(words):
            if token == COMMA:
                last_comma = len(ids)
            elif (
                backtrack
                and len(ids) == CHUNK
                and last_comma != -1
                and len(ids) - last_comma <= backtrack
            ):
                cut = last_comma + 1
                moved = ids[cut:], weights[cut:]
                ids, weights = ids[:cut], weights[:cut]
                finish()
                ids, weights = moved
            if len(ids) == CHUNK:
                finish()
            ids.append(token)
            weights.append(weight)
    if ids or not chunks:
        finish()
    return chunks


def encode_batch(
    sd: StableDiffusion, texts: list[str], options: dict[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """(B, 77 k, C) and the token rows: texts of one schedule share each chunk's mean."""
    emphasis = options["emphasis"]
    rows = [chunks_of(sd, text, options["comma_backtrack"], emphasis) for text in texts]
    count = max(map(len, rows))
    empty: Chunk = ([START, *[END] * (LENGTH - 1)], [1.0] * LENGTH)
    rows = [[*row, *[empty] * (count - len(row))] for row in rows]
    states, all_tokens = [], []
    for i in range(count):
        tokens = torch.tensor([row[i][0] for row in rows])
        weights = torch.tensor([row[i][1] for row in rows])[..., None].to(sd.device)
        z = encode_tokens(sd, tokens, options["clip_skip"])
        if emphasis in ("Original", "No norm"):
            mean, z = z.mean(), z * weights
            z = z * (mean / z.mean()) if emphasis == "Original" else z
        states.append(z)
        all_tokens.append(tokens)
    return torch.cat(states, dim=1), all_tokens


def timeline(
    sd: StableDiffusion, prompt: str, steps: int, options: dict[str, Any]
) -> tuple[Timeline, list[Tensor]]:
    entries = prompt_schedule(prompt, steps, options["old_editing"])
    states, tokens = encode_batch(sd, [text for _, text in entries], options)
    return [(end, state) for (end, _), state in zip(entries, states.split(1))], tokens


def texts(
    sd: StableDiffusion, prompt: str, negative: str, steps: int, options: dict[str, Any]
) -> Texts:
    """What the network reads. The negative prompt has no AND."""
    uncond, tokens = timeline(sd, negative, steps, options)
    parts = []
    for text, weight in cut_and(prompt):
        part, part_tokens = timeline(sd, text, steps, options)
        parts.append((weight, part))
        tokens = tokens + part_tokens
    longest = max(state.shape[1] for _, part in parts for _, state in part)
    if len(parts) > 1:  # the parts get one length, by their last state
        parts = [(w, [(end, with_last(s, longest)) for end, s in part]) for w, part in parts]
    if options["pad_conds_v0"]:
        uncond = [(end, with_last(s, longest)[:, :longest]) for end, s in uncond]
    elif options["pad_conds"]:
        (empty,) = [state for _, state in constant(encode_batch(sd, [""], options)[0])]
        longest = max(longest, *(state.shape[1] for _, state in uncond))
        parts = [
            (w, [(end, with_empty(s, longest, empty)) for end, s in part]) for w, part in parts
        ]
        uncond = [(end, with_empty(s, longest, empty)) for end, s in uncond]
    # A text counts while call <= its end, and the last one for all calls after that.
    return Texts(parts, [*uncond[:-1], (math.inf, uncond[-1][1])], tokens)


def with_last(state: Tensor, length: int) -> Tensor:
    """The states, with the last one repeated up to this length."""
    missing = max(0, length - state.shape[1])
    return torch.cat([state, state[:, -1:].repeat(1, missing, 1)], dim=1)


def with_empty(state: Tensor, length: int, empty: Tensor) -> Tensor:
    """The states, with those of empty chunks up to this length."""
    return torch.cat([state, empty.repeat(1, (length - state.shape[1]) // LENGTH, 1)], dim=1)
