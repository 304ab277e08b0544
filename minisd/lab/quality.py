"""Checks of the method: how good a sampler is, and whether theory agrees.

Each check is a function of a Subject and returns lines of the card. Some lines are only measured.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from minisd.figures.svg import Curves
from minisd.lab import card
from minisd.lab.card import Check, Line
from minisd.lab.contract import fit
from minisd.lab.exact import Mixture
from minisd.lab.subject import (
    EXACT,
    FLOAT32_NOISE,
    GAUSSIAN,
    HIGH,
    LOW,
    MIXTURE,
    SCHEDULES,
    Recorder,
    Subject,
    all_steps,
    draws_between,
    final_latent,
    latent,
    log_slope,
    rms,
    step_iterator,
)
from minisd.samplers import PredictEps, Sampler, k_euler, k_heun
from minisd.schedule import Schedule, karras, start_index

ORDER_STEPS = (64, 128, 256, 512)
PROMPTED = Mixture(((1.0, 0.8, 0.2),))  # the data of the prompt, in the checks of guidance
GUIDANCES = (1.0, 2.0, 5.0, 7.5, 10.0, 15.0, 20.0)
GAIN_STEPS = (10, 20, 50, 100, 150)
GAIN_STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0)

Points = list[tuple[float, float]]  # (x, y) of a plot


def plain_schedule(steps: int) -> list[float]:
    """Karras's schedule without the jump to 0, which has the same length for any steps."""
    return karras(steps)[:-1]


def graded_schedule(steps: int) -> list[float]:
    """The plain schedule with its first step halved 12 times.

    This gives a method with memory a start as good as the method itself. Its first step is Euler's,
    whose error, length^2, would hide an order above 2.
    """
    first, second, *rest = plain_schedule(steps)
    return [first, *(first + (second - first) * 2.0**-j for j in range(12, 0, -1)), second, *rest]


@lru_cache
def exact_run() -> tuple[Tensor, Tensor]:
    x = latent(HIGH)
    return x, MIXTURE.flow(x, HIGH, LOW)


def errors(sampler: Sampler, schedule: Schedule) -> Points:
    """(network calls, error) for ORDER_STEPS."""
    x, exact = exact_run()
    points = []
    for steps in ORDER_STEPS:
        model = Recorder(MIXTURE)
        error = rms(final_latent(sampler, model, x, schedule(steps)) - exact)
        points.append((len(model.calls), error))
    return points


@lru_cache
def euler_errors() -> Points:
    return errors(k_euler, plain_schedule)


def check_order(subject: Subject) -> list[Line]:
    """Error against the exact solution: doubling the steps divides it by 2^order."""
    if subject.ode_draws:
        return []
    graded = errors(subject.ode, graded_schedule)
    plain = errors(subject.ode, plain_schedule)
    curves = {"this sampler": plain, "k_euler": euler_errors()}
    return [
        order_line(card.ORDER, by_steps(graded), subject.theory.order, curves),
        card.OWN_ORDER.line(by_steps(plain)),
    ]


def by_steps(points: Points) -> float:
    """The order: how the errors of ORDER_STEPS fall with the steps, not with the calls."""
    return log_slope([(steps, error) for steps, (_, error) in zip(ORDER_STEPS, points)])


def order_line(
    check: Check, order: float, wanted: int | None, curves: Curves | None = None
) -> Line:
    """Passes within 0.1 of the theory's order, or of a whole number if theory gives none."""
    expected = f"{wanted} ± 0.1"
    if wanted is None:
        wanted = max(1, round(order)) if math.isfinite(order) else 1
        expected = f"{wanted} ± 0.1, the nearest whole number"
    return check.line(order, abs(order - wanted) <= 0.1, expected, curves)


def check_uneven(subject: Subject) -> list[Line]:
    """The order of one step after three of other lengths: its error ~ length^(order + 1).

    The network's answers are the slopes of the exact solution, so only the step's own formula can
    err. On whole runs an error here can cancel: DPM-Solver++(2M) with r upside down still has order
    2.

    A predictor-corrector such as UniPC steps from a corrected x, not from x. That base is measured
    with a last step of nearly no length. Two formulas are then judged apart: the step's own, from
    its base, and the corrected step's, from base to base, whose order is the method's.
    """
    if subject.ode_draws:
        return []
    own_errors, corrected_errors, has_corrector = [], [], True
    for steps in (200, 400):
        sigmas = uneven_schedule(steps)

        def slopes(_: Tensor, sigma: float, start: float = sigmas[0]) -> Tensor:
            return MIXTURE(exact_solution(start, sigma), sigma)

        def error(levels: list[float], predict_eps: PredictEps = slopes) -> Tensor:
            x = exact_solution(levels[0], levels[0])
            x_end = final_latent(subject.ode, predict_eps, x, levels)
            return x_end - exact_solution(levels[0], levels[-1])

        short = 1e-6 * (sigmas[-2] - sigmas[-1])
        base = error([*sigmas[:-1], sigmas[-2] - short])
        next_base = error([*sigmas, sigmas[-1] - short])
        own_errors.append((steps, rms(error(sigmas) - base)))
        corrected_errors.append((steps, rms(next_base - base)))
        correction = rms(base - error(sigmas[:-1]))  # without a corrector: rounding
        has_corrector = has_corrector and correction > 0.05 * own_errors[-1][1]
    order, theory = log_slope(own_errors) - 1, subject.theory
    if not has_corrector:
        return [order_line(card.UNEVEN_ORDER, order, theory.uneven_order or theory.order)]
    own = card.UNEVEN_ORDER.line(order, expected="any: a corrector follows")
    if theory.uneven_order:
        own = order_line(card.UNEVEN_ORDER, order, theory.uneven_order)
    corrected = log_slope(corrected_errors) - 1
    return [own, order_line(card.CORRECTED_ORDER, corrected, theory.order)]


def uneven_schedule(steps: int) -> list[float]:
    """Steps of lengths 2, 1.2, 2.6 and 1.6; the first one in pieces, as in graded_schedule."""
    pieces = [7.4 - 2 * 2.0**-j for j in range(12, 0, -1)]
    return [2.0 + part / steps for part in (7.4, *pieces, 5.4, 4.2, 1.6, 0.0)]


def check_degrees(subject: Subject) -> list[Line]:
    """Up to which k do the first four steps integrate eps = sigma^k exactly, at even levels?

    This distinguishes formulas of the same order, and measures each of the first steps.
    """
    if subject.ode_draws:
        return []
    degrees = [-1] * 4
    for k in range(6):
        sigmas = [10.0, 9.5, 9.0, 8.5, 8.0]

        def power(x: Tensor, sigma: float, k: int = k) -> Tensor:
            return torch.full_like(x, sigma**k)

        for i, step in enumerate(all_steps(subject.ode, power, latent(0.0), sigmas)[:4]):
            wanted = (step.sigma_next ** (k + 1) - step.sigma ** (k + 1)) / (k + 1)
            if degrees[i] == k - 1 and rms(step.x_next - step.x - wanted) < EXACT * 10.0**k:
                degrees[i] = k
    digits = -1 if -1 in degrees else int("".join(map(str, degrees)))
    theory = subject.theory.degrees
    if not theory:
        return [card.DEGREES.line(digits)]
    return [card.DEGREES.line(digits, digits == int(theory), theory)]


def check_distribution(subject: Subject) -> list[Line]:
    """Do the results have the data's distribution? Wasserstein distance W2, by steps."""
    points = [(steps, wasserstein(subject.sampler, steps)) for steps in (20, 64, 128, 256)]
    lines = [card.DISTANCE.line(points[0][1], curves={"this sampler": points})]
    if subject.draws:
        lines.append(order_line(card.WEAK_ORDER, log_slope(points), subject.theory.weak_order))
    return lines


def wasserstein(sampler: Sampler, steps: int) -> float:
    """W2 of the results and the data: for two normals, the distance of (mean, std)."""
    mean, std = distribution(sampler, steps)
    return math.hypot(mean - 0.3, std - (0.5**2 + LOW**2) ** 0.5)


def distribution(sampler: Sampler, steps: int) -> tuple[float, float]:
    """Mean and std of the result over all noise, exactly, if the data is GAUSSIAN.

    There eps is linear in x. So the result is mean + sum of share * normal over the noise of the
    start and the draws, and the shares follow from a linear fit.
    """
    sigmas = plain_schedule(steps)
    x = latent(HIGH, 0.3, 0.5, size=16)
    stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
    x_end = all_steps(sampler, GAUSSIAN, x, sigmas, used)[-1].x_next
    draws = draws_between(stream, used, x.shape)
    noise = (x - 0.3) / (0.5**2 + HIGH**2) ** 0.5
    shares, remainder = fit([noise, *(draws or [])], [x_end])
    if draws is None or remainder > FLOAT32_NOISE:
        return math.nan, math.nan
    return shares[0].item(), shares[1:].norm().item()


def check_gain(subject: Subject) -> list[Line]:
    """How much the sampler amplifies the network's errors: sum |W| over its calls, by sigma."""
    if subject.ode_draws:
        return []
    difference = 0.0
    for schedule in SCHEDULES.values():
        for strength in GAIN_STRENGTHS:
            sigmas = schedule(10)[start_index(10, strength) :]
            weights = total_weights(subject.ode, sigmas)
            change = sigmas[-1] - sigmas[0]
            difference = max(difference, abs(sum(weights) - change) / sigmas[0])
    curves: Curves = {}
    for name in ("model", "karras"):
        for steps in GAIN_STEPS:
            sigmas = SCHEDULES[name](steps)
            curves[f"{name}, {steps} steps"] = [
                (strength, noise_gain(subject.ode, sigmas[start_index(steps, strength) :]))
                for strength in GAIN_STRENGTHS
            ]
    gain, run, strength = max(
        (round(gain, 9), run, strength)
        for run, points in curves.items()
        for strength, gain in points
    )
    promise, passed = card.GAIN.expected, None
    if subject.theory.max_gain is not None:
        promise, passed = f"<= {subject.theory.max_gain:g}", gain <= subject.theory.max_gain + EXACT
    expected = f"{promise} ({run}, strength {strength:g})"
    return [card.WEIGHTS.line(difference), card.GAIN.line(gain, passed, expected, curves)]


def noise_gain(sampler: Sampler, sigmas: list[float]) -> float:
    return sum(map(abs, total_weights(sampler, sigmas))) / sigmas[0]


def total_weights(sampler: Sampler, sigmas: list[float]) -> list[float]:
    """W of each network call, where the result is x + sum of W * eps.

    A model answers each call with 1 in an element of its own and 0 elsewhere, so the result holds
    the weights.
    """
    calls = 0

    def one_hot(x: Tensor, sigma: float) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.zeros_like(x).flatten().index_fill(0, torch.tensor(calls - 1), 1.0).view_as(x)

    x = torch.zeros(1, 4, 16, 16, dtype=torch.float64)
    zero = final_latent(sampler, lambda x, sigma: torch.zeros_like(x), x, sigmas)
    x_end = final_latent(sampler, one_hot, x, sigmas) - zero
    return x_end.flatten()[:calls].tolist()


def check_middle(subject: Subject) -> list[Line]:
    """Does img2img that starts in the middle do what a whole run does from there?

    Without memory the two are equal. With memory the new start costs a step of lower order, whose
    error must fall at least with the square of the steps. With fresh noise, what the samplers
    remember differs by the root of a step's length, and the error falls with steps^1.5. Both runs
    continue the same random stream.
    """
    gaps = []
    for steps in (64, 256):
        sigmas = plain_schedule(steps)
        middle = steps // 2
        stream = torch.Generator().manual_seed(5)
        full_run = step_iterator(subject.sampler, MIXTURE, latent(HIGH), sigmas, stream)
        for _ in range(middle):
            x = next(full_run).x_next
        late_stream = torch.Generator()
        late_stream.set_state(stream.get_state())
        *_, last = full_run
        late_last = all_steps(subject.sampler, MIXTURE, x, sigmas[middle:], late_stream)[-1]
        gaps.append((steps, rms(last.x_next - late_last.x_next)))
    if not subject.theory.resumes:
        return [card.MIDDLE.line(gaps[0][1], True, "any: it depends on the whole schedule")]
    memory = subject.theory.memory
    if memory is None:
        memory = gaps[0][1] >= EXACT
    if memory:
        power, limit = ("1.5", 1.2) if subject.draws else ("2", 1.7)
        falls = f"falls with steps^{power} (memory)"
        return [card.MIDDLE.line(gaps[0][1], log_slope(gaps) >= limit, falls)]
    return [card.MIDDLE.line(gaps[0][1], max(gap for _, gap in gaps) < EXACT)]


def check_refinement(subject: Subject) -> list[Line]:
    """On the schedules as they are, with the jump to 0: do more steps give a better result?

    From 10 to 80 steps the error of the lowest order falls to 1/8, apart from the cost of the jump
    from 0.0292, about 1e-3 on this data. The first error of a method of order 1 is k_euler's, if
    that is larger.
    """
    if subject.ode_draws:
        return []
    worst = 0.0
    curves: Curves = {}
    for name, schedule in SCHEDULES.items():
        for strength in (0.5, 1.0):
            points = []
            for steps in (10, 20, 40, 80):
                sigmas = schedule(steps)[start_index(steps, strength) :]
                points.append((steps, refinement_error(subject.ode, sigmas)))
            if strength == 1.0:
                curves[name] = points
            first = points[0][1]
            if subject.theory.order == 1:
                sigmas = schedule(10)[start_index(10, strength) :]
                first = max(first, refinement_error(k_euler, sigmas))
            worst = max(worst, (points[-1][1] - 1e-3) / first)
    return [card.REFINEMENT.line(worst, curves=curves)]


def refinement_error(sampler: Sampler, sigmas: list[float]) -> float:
    x_end = final_latent(sampler, MIXTURE, exact_solution(sigmas[0], sigmas[0]), sigmas)
    return rms(x_end - exact_solution(sigmas[0], sigmas[-1]))


@lru_cache(1000)
def exact_solution(start: float, sigma: float) -> Tensor:
    """Through the latent at the highest level: its point at `start`, followed to sigma."""
    x = MIXTURE.flow(latent(HIGH), HIGH, start)
    return x if sigma == start else MIXTURE.flow(x, start, sigma)


def check_precision(subject: Subject) -> list[Line]:
    """What float32 and bfloat16 change in a run of 20 steps.

    float32 rounds to 6e-8 of at most 50, twenty times, amplified by a gain of 2: far below 1e-4.
    """
    sigmas = karras(20)
    exact = final_latent(subject.sampler, MIXTURE, latent(HIGH), sigmas)
    lines = []
    for check, dtype in ((card.FLOAT32, torch.float32), (card.BFLOAT16, torch.bfloat16)):
        x_end = final_latent(subject.sampler, MIXTURE, latent(HIGH).to(dtype), sigmas)
        lines.append(check.line((x_end.double() - exact).abs().max().item()))
    return lines


def check_guidance(subject: Subject) -> list[Line]:
    """Guidance 1 to 20: it makes the ODE stiff, and methods of high order break first.

    The sampler is compared with k_euler at the same number of calls. Lu et al. 2022 (DPM-Solver++)
    report that their first solver loses to DDIM, which is Euler, under strong guidance.
    """
    if subject.ode_draws:
        return []
    points, calls = guidance_errors(subject.ode, 20)
    euler_points, _ = guidance_errors(k_euler, calls)
    error, euler_error = dict(points), dict(euler_points)
    better = [g for g in GUIDANCES if error[g] <= euler_error[g] * (1 + EXACT)]
    not_finite = [g for g in GUIDANCES if not math.isfinite(error[g])]
    curves = {"this sampler": points, f"k_euler, {calls} calls": euler_points}
    expected = f"k_euler in as many calls: {euler_error[7.5]:.2g}"
    return [
        card.GUIDED_ERROR.line(error[7.5], expected=expected, curves=curves),
        card.BEST_GUIDANCE.line(max(better, default=0.0)),
        card.NOT_FINITE.line(len(not_finite)),
    ]


def guidance_errors(sampler: Sampler, steps: int) -> tuple[Points, int]:
    """[(guidance, error)] and the network calls."""
    guidance, x, exact = guided_run()
    model = Recorder(guided_by(guidance))
    x_end = final_latent(sampler, model, x, karras(steps))
    return [(g, rms(a - b)) for g, a, b in zip(GUIDANCES, x_end, exact)], len(model.calls)


@lru_cache
def guided_run() -> tuple[Tensor, Tensor, Tensor]:
    """Guidance as a batch (7, 1, 1, 1), the start, and the solution (k_heun, 1000 steps)."""
    guidance = torch.tensor(GUIDANCES, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = latent(HIGH, size=4).expand(len(GUIDANCES), -1, -1, -1)
    return guidance, x, final_latent(k_heun, guided_by(guidance), x, karras(1000))


def guided_by(guidance: Tensor) -> PredictEps:
    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        eps_uncond = MIXTURE(x, sigma)
        return eps_uncond + guidance * (PROMPTED(x, sigma) - eps_uncond)

    return predict_eps


CHECKS: list[Callable[[Subject], list[Line]]] = [
    check_order,
    check_uneven,
    check_degrees,
    check_distribution,
    check_gain,
    check_middle,
    check_refinement,
    check_precision,
    check_guidance,
]
