"""The exercises of lesson 6: longer memory."""

from collections.abc import Callable
from itertools import pairwise
from math import expm1, log

from torch import Tensor

from minisd.lab.subject import HIGH, LOW, MIXTURE, latent
from minisd.lessons import checks
from minisd.lessons.checks import Exercise, which
from minisd.samplers import k_dpmpp_2, lms_weights
from minisd.schedule import karras, model


def two_weights(sigma_last: float, sigma: float, sigma_next: float) -> tuple[float, ...]:
    return tuple(lms_weights([sigma_last, sigma, sigma_next], 1, 2))


WEIGHTS = Exercise(
    two_weights,
    [
        (
            "3/2 and -1/2 are right for steps of one length only. Here the lengths differ",
            lambda a, b, c: (1.5 * (c - b), -0.5 * (c - b)),
        ),
        ("the two weights have changed places", lambda a, b, c: two_weights(a, b, c)[::-1]),
        (
            "the older weight has the wrong sign: the two must sum to the step, sigma_next - sigma",
            lambda a, b, c: (two_weights(a, b, c)[0], -two_weights(a, b, c)[1]),
        ),
        ("that is Euler's step: the older slope has the weight 0", lambda a, b, c: (c - b, 0.0)),
        (
            "the step goes up: its length is sigma_next - sigma, which is negative",
            lambda a, b, c: tuple(-w for w in two_weights(a, b, c)),
        ),
        (
            "the line is followed at the end of the step. Its mean is in the middle, so the "
            "correction is half as large",
            lambda a, b, c: ((c - b) * (1 + (c - b) / (b - a)), -((c - b) ** 2) / (b - a)),
        ),
        (
            "the correction is not multiplied by the length of the step",
            lambda a, b, c: (
                (c - b) + (c - b) / (b - a) / 2,
                -(c - b) / (b - a) / 2,
            ),
        ),
        (
            "the two lengths have changed places in the ratio",
            lambda a, b, c: ((c - b) * (1 + (b - a) / (c - b) / 2), -(b - a) / 2),
        ),
    ],
    "the two weights sum to the step, and integrate every straight line exactly",
    [
        {"sigma_last": a, "sigma": b, "sigma_next": c}
        for a, b, c in ((3.0, 2.0, 1.0), (4.0, 2.0, 1.5), (0.625, 0.369, 0.029))
    ],
    tolerance=1e-7,
)


def two_m(predict_eps: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    for step in k_dpmpp_2(predict_eps, x, sigmas):
        x = step.x_next
    return x


def extrapolated(
    ratio: Callable[[float, float], float], share: Callable[[float], float] = lambda h: -expm1(-h)
) -> Callable[..., Tensor]:
    """DPM-Solver++(2M) with another weight of the correction, or another share of d, by h."""

    def run(predict_eps: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
        x0_last, h_last = None, 0.0
        for sigma, sigma_next in pairwise(sigmas):
            x0 = d = x - sigma * predict_eps(x, sigma)
            if sigma_next == 0:
                x = x0
                continue
            h = log(sigma / sigma_next)
            if x0_last is not None:
                d = x0 + ratio(h_last, h) * (x0 - x0_last)
            x, x0_last, h_last = sigma_next / sigma * x + share(h) * d, x0, h
        return x

    return run


def order_of(answer: Callable[..., Tensor]) -> str | None:
    """The measured order of a loop that no listed mistake equals."""
    x, levels = latent(HIGH), [karras(steps)[:-1] for steps in (64, 128)]
    exact, errors, calls = MIXTURE.flow(x, HIGH, LOW), [], 0

    def counted(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return MIXTURE(x, sigma)

    for sigmas in levels:
        errors.append(float((answer(counted, x, sigmas) - exact).square().mean() ** 0.5))
    if calls != 64 + 128 - 2:
        return f"it calls the network {calls / 190:.2g} times in a step. Once is enough"
    if not errors[1] > 0:
        return "its result is not finite"
    order = log(errors[0] / errors[1]) / log(2)
    if order < 0.5:
        return "its error does not fall when the steps are doubled: look at the last line of a step"
    return f"its measured order is {order:.2f}, not 2, or its first or last step is another one"


TWO_M = Exercise(
    two_m,
    [
        ("the last x0 is not used: that is Euler's method", extrapolated(lambda h_last, h: 0.0)),
        (
            "the ratio is upside down: a long last step makes the correction small",
            extrapolated(lambda h_last, h: h_last / h / 2),
        ),
        (
            "x0 is extrapolated to the end of the step. Its mean is in the middle: halve it",
            extrapolated(lambda h_last, h: h / h_last),
        ),
        (
            "the sign of the correction is wrong: move away from the last x0",
            extrapolated(lambda h_last, h: -h / h_last / 2),
        ),
        (
            "the share of d is 1 - exp(h), which is negative: write 1 - exp(-h)",
            extrapolated(lambda h_last, h: h / h_last / 2, lambda h: -expm1(h)),
        ),
        (
            "the lengths of the steps are not used: 1/2 is right for equal steps only",
            extrapolated(lambda h_last, h: 0.5),
        ),
    ],
    "DPM-Solver++(2M), with order 2 for one call of the network in a step",
    [
        {"predict_eps": MIXTURE, "x": checks.latent(5, sigmas[0]), "sigmas": sigmas}
        for sigmas in (karras(6)[:-1], model(10)[3:])
    ],
    diagnose=order_of,
    tolerance=1e-6,
)

POSITION = Exercise(
    ("B", 3.3),
    [
        ("2.92 is the right sum. Which program has another one?", ("B", 2.92)),
        ("the sum is of all steps, not of the first one alone", ("B", 1.44)),
    ],
    "B takes the weights of its fourth step for its first one, and drops those that it has no "
    "slopes for. diffusers' LMS does this in image-to-image",
    diagnose=which("B", "read the sum in B's line, with two decimals and without the sign"),
    tolerance=0.003,
)

EXERCISES = {
    "two_weights": WEIGHTS,
    "two_m": TWO_M,
    "by_position": POSITION,
}
