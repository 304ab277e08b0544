"""The exercises of lesson 1: the line."""

from collections.abc import Callable

from torch import Tensor

from minisd.lessons.checks import Exercise, latent, which
from minisd.observe.ledger import gains

X0, NOISE = latent(1, 0.9), latent(2)


def insert(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    return x0 + sigma * noise


def gain_of_insert(answer: Callable[..., Tensor]) -> str | None:
    """The gains of an answer in words, if it is a sum of the picture and the noise."""
    x = answer(X0, NOISE, 3.0)
    if not isinstance(x, Tensor) or x.shape != X0.shape:
        return None
    a, b = gains(x, X0, NOISE)
    return f"at sigma 3 the gains of picture and noise are {a:.4g} and {b:.4g}, not 1 and 3"


INSERT = Exercise(
    insert,
    [
        ("the noise is added at full strength: multiply it by sigma", lambda x0, n, s: x0 + n),
        ("the picture is multiplied by sigma too: it must not be", lambda x0, n, s: s * (x0 + n)),
        (
            "the noise is multiplied by its variance, sigma squared: sigma is a standard deviation",
            lambda x0, n, s: x0 + s**2 * n,
        ),
        (
            "the result has variance 1, as the network's input and the papers' x. Here x keeps the "
            "picture at full size: the division by sqrt(sigma^2 + 1) comes later",
            lambda x0, n, s: (x0 + s * n) / (s**2 + 1) ** 0.5,
        ),
        (
            "it blends: the picture gets the weight 1 - sigma. Noise is added to the full picture",
            lambda x0, n, s: (1 - s) * x0 + s * n,
        ),
        ("the noise is subtracted: that is the way back", lambda x0, n, s: x0 - s * n),
        ("x0 and noise have changed places", lambda x0, n, s: n + s * x0),
    ],
    "the gain of the picture is 1 and the gain of the noise is sigma, at every level",
    [{"x0": X0, "noise": NOISE, "sigma": sigma} for sigma in (0.0292, 0.7, 3.0, 14.6146)],
    diagnose=gain_of_insert,
    tolerance=1e-6,
)


def measure(x: Tensor, x0: Tensor, noise: Tensor) -> tuple[float | None, float | None]:
    return gains(x, x0, noise)


def alone(x: Tensor, part: Tensor) -> float:
    return float((x * part).sum() / (part * part).sum())


MIXED = NOISE + 0.5 * X0  # noise that looks a little like the picture
MEASURE = Exercise(
    measure,
    [
        (
            "each gain is measured by itself. The noise looks a little like the picture, by "
            "chance, so a part of one is counted for the other: solve for both together",
            lambda x, x0, n: (alone(x, x0), alone(x, n)),
        ),
        ("the two gains have changed places", lambda x, x0, n: gains(x, x0, n)[::-1]),
        (
            "the picture's gain is taken to be 1. In some programs it is not: measure it",
            lambda x, x0, n: (1.0, alone(x - x0, n)),
        ),
        (
            "standard deviations are compared. They do not tell picture from noise: compare x with "
            "the noise itself, which you have",
            lambda x, x0, n: (float(x.std() / x0.std()), float((x - x0).std() / n.std())),
        ),
    ],
    "the ledger does this at the start of every run",
    [
        {"x": a * X0 + b * noise, "x0": X0, "noise": noise}
        for a, b in ((1.0, 3.0), (0.4, 0.9), (2.5, 8.0))
        for noise in (NOISE, MIXED)
    ],
    tolerance=1e-5,
)


SLIP = Exercise(
    ("C", 1),
    [
        (
            "program B runs one step less. It may: its levels added and expected agree",
            ("B", 1),
        ),
        ("the sign is not needed: count the places between the two levels", ("C", -1)),
    ],
    "C adds the noise of the level before the one that it starts from. CompVis's img2img.py does "
    "this since August 2022. InvokeAI did it until December 2022",
    diagnose=which("C", "find both levels in the list, and count the places from one to the other"),
)

EXERCISES = {
    "insert": INSERT,
    "measure": MEASURE,
    "slip": SLIP,
}
