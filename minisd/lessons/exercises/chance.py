"""The exercises of lesson 7: chance."""

from torch import Tensor

from minisd.lessons import checks
from minisd.lessons.checks import Exercise, which
from minisd.samplers import ancestral_step


def ancestral(sigma: float, sigma_next: float) -> tuple[float, float]:
    return ancestral_step(sigma, sigma_next, 1.0)


def up_of(sigma: float, sigma_next: float) -> float:
    return ancestral(sigma, sigma_next)[1]


ANCESTRAL = Exercise(
    ancestral,
    [
        ("down and up have changed places", lambda a, b: ancestral(a, b)[::-1]),
        (
            "down is sigma_next - up. Independent noises add as squares: "
            "down^2 + up^2 = sigma_next^2",
            lambda a, b: (b - up_of(a, b), up_of(a, b)),
        ),
        (
            "up is the variance: take the square root",
            lambda a, b: (
                max(0.0, b**2 - up_of(a, b) ** 4) ** 0.5,
                up_of(a, b) ** 2,
            ),
        ),
        (
            "down is still sigma_next, so the fresh noise comes on top",
            lambda a, b: (b, up_of(a, b)),
        ),
        ("that is a step without fresh noise: up is 0", lambda a, b: (b, 0.0)),
        ("all of the noise is fresh: the old noise tells where to go", lambda a, b: (0.0, b)),
        (
            "the two levels have changed places in the ratio",
            lambda a, b: (abs(b**2 - a**2 + b**2) ** 0.5, (a**2 - b**2) ** 0.5),
        ),
    ],
    "with these two numbers, the noise after the step is exactly that of sigma_next",
    [{"sigma": a, "sigma_next": b} for a, b in ((14.6146, 7.8399), (2.0, 1.5), (0.4, 0.0292))],
    tolerance=1e-7,
)  # fmt: skip


def merge(noise_1: Tensor, noise_2: Tensor, a: float, b: float, c: float) -> Tensor:
    """The increments of the path, -sqrt(length) * noise, add up."""
    return ((a - b) ** 0.5 * noise_1 + (b - c) ** 0.5 * noise_2) / (a - c) ** 0.5


N1, N2 = checks.latent(8), checks.latent(9)
MERGE = Exercise(
    merge,
    [
        ("the noises are added: the sum has too much variance", lambda m, n, a, b, c: m + n),
        ("the mean of two noises has half the variance", lambda m, n, a, b, c: (m + n) / 2),
        (
            "sqrt(2) is right for two steps of one length only. Weigh each by its length",
            lambda m, n, a, b, c: (m + n) / 2**0.5,
        ),
        (
            "the weights are shares of the length. Variances add up, so the weights are the square "
            "roots of the shares",
            lambda m, n, a, b, c: ((a - b) * m + (b - c) * n) / (a - c),
        ),
        (
            "the two lengths have changed places",
            lambda m, n, a, b, c: merge(n, m, a, b, c),
        ),
        (
            "the result must have variance 1: divide by the root of the whole length",
            lambda m, n, a, b, c: (a - b) ** 0.5 * m + (b - c) ** 0.5 * n,
        ),
    ],
    "one long step and two short ones now follow the same path",
    [
        {"noise_1": N1, "noise_2": N2, "a": a, "b": b, "c": c}
        for a, b, c in ((14.0, 8.0, 4.0), (2.0, 1.9, 0.5), (1.0, 0.5, 0.0))
    ],
    tolerance=1e-6,
)

REPEATED = Exercise(
    ("B", 1.41),
    [
        ("1 would be right: how large is it in program B?", ("B", 1.0)),
        ("that is the noise itself. Divide it by the level that is expected, 1.95", ("B", 2.75)),
    ],
    "B draws its first noise a second time, because the sampler's generator gets the same seed. "
    "Two equal noises add up as numbers, not as squares. ComfyUI did this on CPUs during 2025",
    diagnose=which("B", "divide the noise that B has after its first step by the level expected"),
    tolerance=0.005,
)

EXERCISES = {
    "ancestral": ANCESTRAL,
    "merge": MERGE,
    "repeated": REPEATED,
}
