"""The formula of a method: the result of four steps that can be computed from its paper by hand."""

from math import exp, log

import torch
from torch import Tensor

from minisd.lab import card
from minisd.lab.card import Line
from minisd.lab.subject import Subject, all_steps

LAMBDAS = (-1.0, -0.6, -0.3, 0.2, 0.5)  # -log(sigma), in steps of uneven lengths
FORMULA_LIMIT = 1e-8  # the tables have nine digits behind the point


class Parabola:
    """A network whose clean latent is lambda^2, whatever x; without the prompt it is lambda."""

    guidance = 1.0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return (x - log(sigma) ** 2) / sigma

    def both(self, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        return (x + log(sigma)) / sigma, self(x, sigma)

    def guide(self, eps_uncond: Tensor, eps_cond: Tensor, x: Tensor, sigma: float) -> Tensor:
        return eps_cond


def defect(subject: Subject) -> float:
    """What four steps from x = 0 miss of the exact solution, without fresh noise.

    With x0 = lambda^2 the solution of dx/dsigma = eps is
    x / sigma = e^lambda (lambda^2 - 2 lambda + 2) + constant.
    """

    def integral(place: float) -> float:
        return exp(place) * (place**2 - 2 * place + 2)

    sigmas = [exp(-place) for place in LAMBDAS]
    start = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    x = all_steps(subject.ode, Parabola(), start, sigmas)[-1].x_next
    return x.mean().item() - sigmas[-1] * (integral(LAMBDAS[-1]) - integral(LAMBDAS[0]))


def check_formula(subject: Subject) -> list[Line]:
    """Methods of one order differ in their coefficients: so they miss this solution by different
    amounts.
    """
    if subject.ode_draws:
        return []
    value, theory = defect(subject), subject.theory.defect
    if theory is None:
        return [card.DEFECT.line(value)]
    return [card.DEFECT.line(value, abs(value - theory) < FORMULA_LIMIT, f"{theory:.9f}")]


CHECKS = [check_formula]
