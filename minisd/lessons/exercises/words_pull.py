"""The exercises of lesson 8: words pull."""

import torch
from torch import Tensor

from minisd.lessons.checks import Exercise, latent, which
from minisd.more_samplers import guidance_rules


def guide(eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
    return eps_uncond + scale * (eps_cond - eps_uncond)


U, C = latent(10), latent(11)
GUIDE = Exercise(
    guide,
    [
        (
            "it counts from eps_cond, as Imagen's paper does. Then scale 0 has the words' full "
            "effect. Here scale 1 has it",
            lambda u, c, s: c + s * (c - u),
        ),
        (
            "the sign before eps_uncond is wrong: the two weights must sum to 1",
            lambda u, c, s: s * c + (s - 1) * u,
        ),
        ("eps_uncond and eps_cond have changed places", lambda u, c, s: c + s * (u - c)),
        ("only eps_cond is used: it gets larger, but has no direction", lambda u, c, s: s * c),
        ("only the difference is left: eps_uncond is missing", lambda u, c, s: s * (c - u)),
    ],
    "scale 0 ignores the words, 1 follows them, and more exaggerates what they change",
    [{"eps_uncond": U, "eps_cond": C, "scale": s} for s in (0.0, 1.0, 4.0, 7.5)],
    tolerance=1e-6,
)


def rescale(eps_uncond: Tensor, eps_cond: Tensor, scale: float, phi: float) -> Tensor:
    return guidance_rules.rescale(scale, phi)(eps_uncond, eps_cond, eps_uncond, 1.0)


def std(eps: Tensor) -> Tensor:
    return eps.std((1, 2, 3), keepdim=True)


BATCH_U, BATCH_C = torch.cat([U, 3 * C, C]), torch.cat([0.5 * C, 2 * U, U + 0.1 * C])
RESCALE = Exercise(
    rescale,
    [
        (
            "one standard deviation is taken for the whole batch. Each picture has its own: "
            "std over the dimensions 1, 2, 3, with keepdim=True",
            lambda u, c, s, p: guide(u, c, s) * (p * c.std() / guide(u, c, s).std() + 1 - p),
        ),
        (
            "the ratio is upside down: it must shrink what guidance made too large",
            lambda u, c, s, p: guide(u, c, s) * (p * std(guide(u, c, s)) / std(c) + 1 - p),
        ),
        (
            "phi and 1 - phi have changed places: at phi 0 nothing changes",
            lambda u, c, s, p: rescale(u, c, s, 1 - p),
        ),
        ("nothing is rescaled: that is plain guidance", lambda u, c, s, p: guide(u, c, s)),
        ("phi is not used: all of it is rescaled", lambda u, c, s, p: rescale(u, c, s, 1.0)),
        (
            "the standard deviation is brought back to eps_uncond's. Take eps_cond's",
            lambda u, c, s, p: guide(u, c, s) * (p * std(u) / std(guide(u, c, s)) + 1 - p),
        ),
    ],
    "at phi 1 the standard deviation is eps_cond's again, for each picture",
    [
        {"eps_uncond": BATCH_U, "eps_cond": BATCH_C, "scale": s, "phi": p}
        for s, p in ((7.5, 0.7), (4.0, 0.0), (15.0, 1.0))
    ],
    tolerance=1e-6,
)

PLUS = Exercise(
    ("A", 7),
    [
        ("B counts from eps_cond: its 4 is another program's 5. That is a choice", ("B", 5)),
        ("the weights are 4 and 3: what is their sum?", ("A", 4)),
        ("the weights should sum to 1. What is their sum in A?", ("A", 1)),
    ],
    "A's weights are 4 and 3, where 4 and -3 would be right: so all noise is predicted 7 times too "
    "large. This formula stands in the comments of labml's annotated implementation",
    diagnose=which("A", "compare the spread of eps in A and in C"),
    tolerance=0.05,
)  # fmt: skip

EXERCISES = {
    "guide": GUIDE,
    "rescale": RESCALE,
    "plus": PLUS,
}
