"""The exercises of lesson 10: words, attention, surgery."""

import torch
from torch import Tensor

from minisd.lessons.checks import Exercise, latent, which
from minisd.observe.attention_maps import attention_shares


def shares(q: Tensor, k: Tensor, heads: int) -> Tensor:
    return attention_shares(q, k, heads)


def per_head(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """The products of each head, divided by sqrt(d): (B, heads, N, M)."""
    q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def softmax_of(q: Tensor, k: Tensor, heads: int, width: int, dim: int = -1) -> Tensor:
    """Shares with a scale of 1 / sqrt(width), over a dimension."""
    own_width = q.shape[-1] // heads
    return (per_head(q, k, heads) * (own_width / width) ** 0.5).softmax(dim).mean(1)


Q, K = (
    latent(18, 2.0, 8).view(1, 16, 16).float(),
    latent(19, 2.0, 8)[:, :3].reshape(1, 12, 16).float(),
)
SHARES = Exercise(
    shares,
    [
        (
            "the products are not divided by sqrt(d): the shares are too extreme",
            lambda q, k, heads: softmax_of(q, k, heads, 1),
        ),
        (
            "they are divided by the root of the whole width. Each head has only its own d numbers",
            lambda q, k, heads: softmax_of(q, k, heads, q.shape[-1]),
        ),
        (
            "the softmax goes over the places. The shares of one place, over all words, sum to 1",
            lambda q, k, heads: softmax_of(q, k, heads, q.shape[-1] // heads, dim=-2),
        ),
        (
            "all heads are one: divide the numbers into heads first",
            lambda q, k, heads: softmax_of(q, k, 1, q.shape[-1]),
        ),
        (
            "the mean over the heads is missing",
            lambda q, k, heads: per_head(q, k, heads).softmax(-1),
        ),
        (
            "the heads are interleaved. The first d numbers are the first head's",
            lambda q, k, heads: shares(
                *(y.unflatten(-1, (-1, heads)).transpose(-1, -2).flatten(-2) for y in (q, k)), heads
            ),
        ),
    ],
    "the shares of each place sum to 1",
    [{"q": Q, "k": K, "heads": heads} for heads in (2, 4)],
    tolerance=1e-5,
)  # fmt: skip


def emphasize(states: Tensor, empty: Tensor, places: list[int], weight: float) -> Tensor:
    """ComfyUI's rule: away from the empty prompt's state at the same place."""
    factors = torch.ones(states.shape[1], 1).to(states)
    factors[places] = weight
    return empty + factors * (states - empty)


def at_places(result: Tensor, states: Tensor, places: list[int]) -> Tensor:
    mixed = states.clone()
    mixed[:, places] = result[:, places]
    return mixed


STATES, EMPTY = latent(20).view(1, 8, 8), latent(21).view(1, 8, 8)
EMPHASIZE = Exercise(
    emphasize,
    [
        (
            "the states themselves are multiplied, as AUTOMATIC1111 does. Here the distance from "
            "the empty prompt is",
            lambda y, e, places, w: at_places(w * y, y, places),
        ),
        (
            "empty is not subtracted: weight multiplies states - empty",
            lambda y, e, places, w: at_places(e + w * y, y, places),
        ),
        (
            "all places are moved: only the word's places may change",
            lambda y, e, places, w: e + w * (y - e),
        ),
        (
            "the places are shifted by one. They count from the start token, which is 0",
            lambda y, e, places, w: emphasize(y, e, [p + 1 for p in places], w),
        ),
        (
            "the difference is added once more: at weight 1 nothing may change",
            lambda y, e, places, w: at_places(y + w * (y - e), y, places),
        ),
        (
            "the word moves towards the empty prompt: states and empty have changed places",
            lambda y, e, places, w: at_places(y + w * (e - y), y, places),
        ),
    ],
    "weight 1 changes nothing, 0 removes the word, and more makes it louder",
    [{"states": STATES, "empty": EMPTY, "places": [1, 2], "weight": w} for w in (0.0, 1.0, 1.5)],
    tolerance=1e-6,
)

HEADS = Exercise(
    ("A", 2),
    [
        ("A has more heads than the model was trained with, not fewer", ("A", 0.5)),
        ("C starts later. That is another strength, not a mistake", ("C", 2)),
    ],
    "A divides the same numbers into twice as many heads. All shapes fit, all shares sum to 1, and "
    "the ledger sees nothing. diffusers' setting attention_head_dim holds a number of heads: a "
    "program that believes its name computes this",
    diagnose=which("A", "divide A's number of heads by B's"),
)

EXERCISES = {
    "shares": SHARES,
    "emphasize": EMPHASIZE,
    "heads": HEADS,
}
