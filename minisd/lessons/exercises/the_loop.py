"""The exercises of lesson 3: the loop."""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from minisd.lab.subject import MIXTURE
from minisd.lessons.checks import Exercise, latent, which
from minisd.samplers import k_euler
from minisd.schedule import karras, model


def euler(predict_eps: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    for step in k_euler(predict_eps, x, sigmas):
        x = step.x_next
    return x


def stepped(
    change: Callable[[Callable[..., Tensor], Tensor, float, float], Tensor],
) -> Callable[[Callable[..., Tensor], Tensor, list[float]], Tensor]:
    """A loop around one step of a wrong method."""

    def run(predict_eps: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
        for sigma, sigma_next in pairwise(sigmas):
            x = change(predict_eps, x, sigma, sigma_next)
        return x

    return run


def one_prediction(predict_eps: Callable[..., Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    return x + (sigmas[-1] - sigmas[0]) * predict_eps(x, sigmas[0])


EULER = Exercise(
    euler,
    [
        (
            "the step goes up: sigma_next - sigma is negative, and that is right",
            stepped(lambda f, x, s, n: x + (s - n) * f(x, s)),
        ),
        (
            "each step removes all noise. Remove only what lies between sigma and sigma_next",
            stepped(lambda f, x, s, n: x - s * f(x, s)),
        ),
        (
            "each step removes noise of sigma_next. Remove what lies between sigma and sigma_next",
            stepped(lambda f, x, s, n: x - n * f(x, s)),
        ),
        ("eps is predicted once, before the loop. Predict it again at each new x", one_prediction),
        (
            "the network is passed sigma_next, but x still has the noise of sigma",
            stepped(lambda f, x, s, n: x + (n - s) * f(x, n)),
        ),
        (
            "the last step is missing: n + 1 levels make n steps",
            lambda f, x, sigmas: euler(f, x, sigmas[:-1]),
        ),
        (
            "the first step is missing: start at sigmas[0]",
            lambda f, x, sigmas: euler(f, x, sigmas[1:]),
        ),
    ],
    "this is minisd's k_euler, and DDIM without fresh noise",
    [
        {"predict_eps": MIXTURE, "x": latent(5, sigmas[0]), "sigmas": sigmas}
        for sigmas in (karras(6)[:-1], model(10)[3:], model(3))
    ],
    tolerance=1e-6,
)  # fmt: skip


def ddim_step(y: Tensor, eps: Tensor, abar: float, abar_next: float) -> Tensor:
    """Euler's step of x = y * sqrt(sigma^2 + 1), and back."""
    sigma, sigma_next = (((1 - a) / a) ** 0.5 for a in (abar, abar_next))
    x = y * (sigma**2 + 1) ** 0.5
    return (x + (sigma_next - sigma) * eps) / (sigma_next**2 + 1) ** 0.5


def y0_of(y: Tensor, eps: Tensor, abar: float) -> Tensor:
    return (y - (1 - abar) ** 0.5 * eps) / abar**0.5


DDIM_STEP = Exercise(
    ddim_step,
    [
        (
            "sigma stands where sqrt(1 - abar) belongs. y has variance 1, so its noise is smaller "
            "than x's",
            lambda y, e, a, b: b**0.5 * y0_of(y, ((1 / a) ** 0.5) * e, a) + (1 - b) ** 0.5 * e,
        ),
        (
            "the square roots are missing: abar is a share of the variance",
            lambda y, e, a, b: b * (y - (1 - a) * e) / a + (1 - b) * e,
        ),
        (
            "no noise is put back: the next y needs noise of its own level",
            lambda y, e, a, b: b**0.5 * y0_of(y, e, a),
        ),
        (
            "the noise that is put back has the old level, not the next one",
            lambda y, e, a, b: b**0.5 * y0_of(y, e, a) + (1 - a) ** 0.5 * e,
        ),
        (
            "abar and abar_next have changed places",
            lambda y, e, a, b: a**0.5 * y0_of(y, e, b) + (1 - a) ** 0.5 * e,
        ),
        ("y0 is the clean latent: the step is not finished", lambda y, e, a, b: y0_of(y, e, a)),
    ],
    "equation 12 of the DDIM paper is Euler's step, in other units",
    [
        {"y": latent(6), "eps": latent(7), "abar": a, "abar_next": b}
        for a, b in ((0.0047, 0.05), (0.3, 0.6), (0.8, 0.999))
    ],
    tolerance=1e-6,
)  # fmt: skip

UNSCALED = Exercise(
    ("C", 3.08),
    [
        ("this is the factor that the input should have: the answer is one over it", ("C", 0.32)),
        ("2.92 is the level. The right factor is 1 / sqrt(sigma^2 + 1)", ("C", 2.92)),
        ("program B calls the network twice in a step. It may: its input is right", ("B", 3.08)),
    ],
    "C passes x itself to the network, 3.08 times too large. A cell of the course Stable Diffusion "
    "Deep Dive forgot this division. Its author lists it among the errata",
    diagnose=which("C", "divide C's factor by the factor of the other two"),
    tolerance=0.005,
)

EXERCISES = {
    "euler": EULER,
    "ddim_step": DDIM_STEP,
    "unscaled": UNSCALED,
}
