"""The exercises of lesson 2: one look."""

from torch import Tensor

from minisd.lab.exact import Mixture
from minisd.lessons.checks import Exercise, latent, which


def clean(x: Tensor, eps: Tensor, sigma: float) -> Tensor:
    return x - sigma * eps


CLEAN = Exercise(
    clean,
    [
        ("eps is added: the noise has to go", lambda x, e, s: x + s * e),
        ("eps has variance 1: the noise in x is sigma * eps", lambda x, e, s: x - e),
        (
            "x is divided by sqrt(sigma^2 + 1) first. That is the network's input. The noise is "
            "removed from x itself",
            lambda x, e, s: x / (s**2 + 1) ** 0.5 - s * e,
        ),
        ("the result is divided by sigma: that gives eps from x0", lambda x, e, s: (x - e) / s),
    ],
    "x0 = x - sigma * eps. The code calls it the step's x0",
    [{"x": latent(1, s), "eps": latent(3), "sigma": s} for s in (0.0292, 1.0, 7.0)],
    tolerance=1e-6,
)


def best_guess(x: Tensor, sigma: float, mean: float, std: float) -> Tensor:
    return x - sigma * Mixture(((1.0, mean, std),))(x, sigma)


GUESS = Exercise(
    best_guess,
    [
        ("x is returned as it is: all of it is taken for picture", lambda x, s, m, d: x),
        ("the mean is returned alone: x tells something too", lambda x, s, m, d: m + 0 * x),
        (
            "the weights are made of standard deviations: variances are compared, so square them",
            lambda x, s, m, d: (s * m + d * x) / (s + d),
        ),
        (
            "the weights have changed places: much noise means that x tells little",
            lambda x, s, m, d: (d**2 * m + s**2 * x) / (s**2 + d**2),
        ),
        (
            "the mean is forgotten: x is shrunk towards 0, not towards the mean",
            lambda x, s, m, d: d**2 / (s**2 + d**2) * x,
        ),
    ],
    "this is what the best possible network would predict for such data",
    [
        {"x": m + latent(4, (d**2 + s**2) ** 0.5), "sigma": s, "mean": m, "std": d}
        for s, m, d in ((0.1, 0.3, 0.5), (1.0, 0.3, 0.5), (9.0, -1.0, 2.0))
    ],
    tolerance=1e-6,
)

SCALED = Exercise(
    ("A", 0.53),
    [
        ("0.63 is the level. Divide what the ledger says of the picture", ("A", 0.63)),
        ("that is the gain of the noise. The picture's has the name image_gain", ("A", 0.33)),
        ("that gain is the right one, 1: read the line of program A", ("A", 1.0)),
    ],
    "A has the papers' x, of variance 1, and multiplies it by sigma. So the picture fades wherever "
    "sigma is small. InvokeAI's development version did this in September 2022, and its users saw "
    "wrong colours at low strength",
    diagnose=which("A", "read the gain of the picture from A's line, with two decimals"),
    tolerance=0.004,
)

EXERCISES = {
    "clean": CLEAN,
    "best_guess": GUESS,
    "scaled": SCALED,
}
