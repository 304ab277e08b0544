"""Checks of the method: how good a sampler is, and whether that is as on paper.

Each check is a function of a Subject and gives lines of the card, some of them only measured.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from minisd.lab.contract import fit
from minisd.lab.exact import Mixture
from minisd.lab.subject import (
    EXACT,
    GAUSSIAN,
    HIGH,
    LOW,
    MIXTURE,
    Line,
    Recorder,
    Sampler,
    Subject,
    draws_between,
    judge,
    latent,
    result,
    rms,
    run,
    slope,
    start,
)
from minisd.samplers import k_euler, k_heun
from minisd.schedule import SCHEDULES, karras, start_index

ORDER_STEPS = (64, 128, 256, 512)
PROMPTED = Mixture(((1.0, 0.8, 0.2),))  # where guidance pulls the mixture
GUIDANCES = (1.0, 2.0, 5.0, 7.5, 10.0, 15.0, 20.0)
GAIN_STEPS = (10, 20, 50, 100, 150)
GAIN_STRENGTHS = (0.1, 0.25, 0.5, 0.75, 1.0)


def plain_grid(steps: int) -> list[float]:
    """Karras' grid without the jump to 0, which is the same however many steps there are."""
    return karras(steps)[:-1]


def graded_grid(steps: int) -> list[float]:
    """The same, its first step halved 12 times over.

    This gives a method with a memory a start-up as good as itself: its first step is Euler's, and
    the error of that, length^2, would drown an order above 2.
    """
    first, second, *rest = plain_grid(steps)
    return [first, *(first + (second - first) * 2.0**-j for j in range(12, 0, -1)), second, *rest]


@lru_cache
def exact_run() -> tuple[Tensor, Tensor]:
    x = latent(HIGH)
    return x, MIXTURE.flow(x, HIGH, LOW)


def errors(sampler: Sampler, grid) -> list[tuple[float, float]]:
    """(network calls, error) for ORDER_STEPS."""
    x, exact = exact_run()
    points = []
    for steps in ORDER_STEPS:
        model = Recorder(MIXTURE)
        error = rms(result(sampler, model, x, grid(steps)) - exact)
        points.append((len(model.calls), error))
    return points


@lru_cache
def euler_errors() -> list[tuple[float, float]]:
    return errors(k_euler, plain_grid)


def check_order(subject: Subject) -> list[Line]:
    """Error against the exact solution: each doubling of the steps divides it by 2^order."""
    if subject.ode_draws:
        return []
    graded = [
        (steps, error) for steps, (_, error) in zip(ORDER_STEPS, errors(subject.ode, graded_grid))
    ]
    plain = errors(subject.ode, plain_grid)
    order = slope(graded)
    return [
        judge_order(
            "order",
            order,
            subject.theory.order,
            "a wrong coefficient or sigma; 0 is a bias that stays, 1 for 2 a lost correction",
            {"this sampler": plain, "k_euler": euler_errors()},
        ),
        judge(
            "order from its own start-up",
            slope([(steps, error) for steps, (_, error) in zip(ORDER_STEPS, plain)]),
            None,
            "falls to 2 if memory starts empty",
            "a multistep method that starts with Euler's step keeps the error of that, length^2",
        ),
    ]


def check_uneven(subject: Subject) -> list[Line]:
    """The order of one step after three of other lengths: its error ~ h^(order + 1).

    The slopes are those of the exact solution, so nothing but the step's own formula is seen. On
    whole runs an error here can cancel: with r upside down DPM-Solver++(2M) is still of order 2.
    """
    if subject.ode_draws:
        return []
    points = []
    for steps in (100, 200):
        sigmas = [2.0 + part / steps for part in (7.4, 5.4, 4.2, 1.6, 0.0)]  # 2, 1.2, 2.6, 1.6 long
        x = MIXTURE.flow(latent(HIGH), HIGH, sigmas[0])

        def slopes(_: Tensor, sigma: float, x: Tensor = x, sigmas: list[float] = sigmas) -> Tensor:
            return MIXTURE(MIXTURE.flow(x, sigmas[0], sigma), sigma)

        last = run(subject.ode, slopes, x, sigmas)[-1]
        exact = MIXTURE.flow(x, sigmas[0], sigmas[4]) - MIXTURE.flow(x, sigmas[0], sigmas[3])
        points.append((steps, rms(last.x_next - last.x - exact)))
    return [
        judge_order(
            "order of a step on an uneven grid",
            slope(points) - 1,
            subject.theory.uneven_order or subject.theory.order,
            "the lengths of earlier steps are left out of the weights, or upside down",
        )
    ]


def judge_order(
    check: str, order: float, wanted: int | None, meaning: str, curves: dict | None = None
) -> Line:
    """Within 0.1 of what theory says; where it says nothing, of a whole number, as orders are."""
    nearest = max(1, round(order)) if math.isfinite(order) else 1
    expected = f"{wanted or nearest} ± 0.1" + ("" if wanted else ", the nearest whole number")
    return judge(check, order, abs(order - (wanted or nearest)) <= 0.1, expected, meaning, curves)


def check_degrees(subject: Subject) -> list[Line]:
    """Up to which k do the first four steps integrate eps = sigma^k exactly, on an even grid?

    It tells formulas of the same order apart, and sees the steps of a start-up one by one.
    """
    if subject.ode_draws:
        return []
    degrees = [-1] * 4
    for k in range(6):
        sigmas = [10.0, 9.5, 9.0, 8.5, 8.0]
        steps = run(subject.ode, lambda x, s, k=k: torch.full_like(x, s**k), latent(0.0), sigmas)
        for i, step in enumerate(steps[:4]):
            wanted = (step.sigma_next ** (k + 1) - step.sigma ** (k + 1)) / (k + 1)
            if degrees[i] == k - 1 and rms(step.x_next - step.x - wanted) < EXACT * 10.0**k:
                degrees[i] = k
    theory = subject.theory.degrees
    value = -1 if -1 in degrees else int("".join(map(str, degrees)))
    return [
        judge(
            "degrees of steps 1 to 4, a digit each",
            value,
            None if theory == "" else value == int(theory),
            theory or "rising, 0 for Euler",
            "weights of another formula than the one named; -1: not even a constant is right",
        )
    ]


def law(sampler: Sampler, steps: int) -> tuple[float, float]:
    """Mean and std of the result where the data is GAUSSIAN, over all noise, exactly.

    There eps is linear in x, so the result is mean + sum of share * normal over the start's noise
    and the draws, and the shares follow from a linear fit.
    """
    sigmas = plain_grid(steps)
    x = latent(HIGH, 0.3, 0.5, size=16)
    stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
    x_end = run(sampler, GAUSSIAN, x, sigmas, used)[-1].x_next
    drawn = draws_between(stream, used, x.shape)
    noise = (x - 0.3) / (0.5**2 + HIGH**2) ** 0.5
    shares, rest = fit([noise, *(drawn or [])], [x_end])
    if drawn is None or rest > EXACT:
        return math.nan, math.nan
    return shares[0].item(), shares[1:].norm().item()


def wasserstein(sampler: Sampler, steps: int) -> float:
    """W2 between the results and the data, both normal: differences of mean and of std, squared."""
    mean, std = law(sampler, steps)
    return math.hypot(mean - 0.3, std - (0.5**2 + LOW**2) ** 0.5)


def check_law(subject: Subject) -> list[Line]:
    """Do the results have the data's distribution? Wasserstein distance W2, by steps."""
    points = [(steps, wasserstein(subject.sampler, steps)) for steps in (20, 64, 128, 256)]
    lines = [
        judge(
            "W2 to Gaussian data, 20 steps",
            points[0][1],
            None,
            "small",
            "results are too smooth or too noisy: detail is lost, or grain added",
            {"this sampler": points},
        )
    ]
    if subject.draws:
        lines.append(
            judge_order(
                "weak order",
                slope(points),
                subject.theory.weak_order,
                "up and down don't share the noise as they should, so the spread of results is off",
            )
        )
    return lines


def total_weights(sampler: Sampler, sigmas: list[float]) -> list[float]:
    """W of each network call, if the result is x + sum of W * eps.

    In a model that answers each call with 1 in an element of its own, and 0 elsewhere, they can be
    read off.
    """
    count = 0

    def one_hot(x: Tensor, sigma: float) -> Tensor:
        nonlocal count
        count += 1
        return torch.zeros_like(x).flatten().index_fill(0, torch.tensor(count - 1), 1.0).view_as(x)

    x = torch.zeros(1, 4, 16, 16, dtype=torch.float64)
    x_end = result(sampler, one_hot, x, sigmas) - result(
        sampler, lambda x, sigma: torch.zeros_like(x), x, sigmas
    )
    return x_end.flatten()[:count].tolist()


def noise_gain(sampler: Sampler, sigmas: list[float]) -> float:
    return sum(map(abs, total_weights(sampler, sigmas))) / sigmas[0]


def check_gain(subject: Subject) -> list[Line]:
    """What the sampler makes of the network's errors: the sum of |W| over its calls, by sigma."""
    if subject.ode_draws:
        return []
    off = 0.0
    for grid in SCHEDULES.values():
        for strength in GAIN_STRENGTHS:
            sigmas = grid(10)[start_index(10, strength) :]
            weights = total_weights(subject.ode, sigmas)
            off = max(off, abs(sum(weights) - (sigmas[-1] - sigmas[0])) / sigmas[0])
    curves = {
        f"{name}, {steps} steps": [
            (
                strength,
                noise_gain(subject.ode, SCHEDULES[name](steps)[start_index(steps, strength) :]),
            )
            for strength in GAIN_STRENGTHS
        ]
        for name in ("model", "karras")
        for steps in GAIN_STEPS
    }
    worst, where, strength = max(
        (round(gain, 9), where, strength)
        for where, points in curves.items()
        for strength, gain in points
    )
    promised = subject.theory.max_gain
    return [
        judge(
            "weights: sum - change of sigma",
            off,
            off < EXACT,
            "0",
            "a wrong coefficient: even noise that is predicted perfectly isn't taken out in full",
        ),
        judge(
            f"noise gain at most ({where}, strength {strength:g})",
            worst,
            None if promised is None else worst <= promised + EXACT,
            "1 is none" if promised is None else f"<= {promised:g}",
            "errors of the network are amplified: grain in short img2img runs (k_lms: max_gain)",
            curves,
        ),
    ]


def check_middle(subject: Subject) -> list[Line]:
    """Is img2img that starts in the middle what the whole run does from there?

    Exactly so, without a memory. With one, the new start costs a step of lower order, whose error
    must fall at least with the square of the steps. The random stream goes on where it was.
    """
    gaps = []
    for steps in (64, 256):
        sigmas = plain_grid(steps)
        middle = steps // 2
        stream = torch.Generator().manual_seed(5)
        whole = start(subject.sampler, MIXTURE, latent(HIGH), sigmas, stream)
        for _ in range(middle):
            x = next(whole).x_next
        late = torch.Generator()
        late.set_state(stream.get_state())
        *_, last = whole
        late_last = run(subject.sampler, MIXTURE, x, sigmas[middle:], late)[-1]
        gaps.append((steps, rms(last.x_next - late_last.x_next)))
    memory = subject.theory.memory
    if memory is None:
        memory = gaps[0][1] >= EXACT
    ok = slope(gaps) >= 1.7 if memory else max(gap for _, gap in gaps) < EXACT
    return [
        judge(
            "started in the middle - continued there",
            gaps[0][1],
            ok,
            "falls with steps^2, as it has a memory" if memory else "0",
            "steps counted from the grid's start, a memory that isn't empty, a leak between runs",
        )
    ]


def check_refinement(subject: Subject) -> list[Line]:
    """On the grids as they are, with the jump to 0: do more steps give a better result?

    From 10 to 80 steps the error of the lowest order falls to 1/8, less what the jump from 0.0292
    costs, some 1e-3 on this data.
    """
    if subject.ode_draws:
        return []
    worst = 0.0
    curves = {}
    for name, grid in SCHEDULES.items():
        for strength in (0.5, 1.0):
            points = []
            for steps in (10, 20, 40, 80):
                sigmas = grid(steps)[start_index(steps, strength) :]
                x = MIXTURE.flow(latent(HIGH), HIGH, sigmas[0])
                error = rms(
                    result(subject.ode, MIXTURE, x, sigmas) - exact_end(sigmas[0], sigmas[-1])
                )
                points.append((steps, error))
            if strength == 1.0:
                curves[name] = points
            worst = max(worst, (points[-1][1] - 1e-3) / points[0][1])
    return [
        judge(
            "error with 80 steps / with 10",
            worst,
            worst < 0.3,
            "< 0.3 on every grid",
            "more steps don't help: something is added at each, or the last step is no good",
            curves,
        )
    ]


@lru_cache
def exact_end(sigma: float, sigma_end: float) -> Tensor:
    return MIXTURE.flow(MIXTURE.flow(latent(HIGH), HIGH, sigma), sigma, sigma_end)


def check_precision(subject: Subject) -> list[Line]:
    """What float32 and bfloat16 do to a run of 20 steps, and whether the latent stays what it was.

    float32 rounds to 6e-8 of 50 at most, twenty times, amplified by a gain of 2: 1e-4 is plenty.
    """
    sigmas = karras(20)
    exact = result(subject.sampler, MIXTURE, latent(HIGH), sigmas)
    differences = {}
    other = 0
    for dtype in (torch.float32, torch.bfloat16):
        x_end = result(subject.sampler, MIXTURE, latent(HIGH).to(dtype), sigmas)
        other += x_end.dtype != dtype
        differences[dtype] = (x_end.double() - exact).abs().max().item()
    return [
        judge(
            "float32 - float64",
            differences[torch.float32],
            differences[torch.float32] < 1e-4 and not other,
            "< 0.0001",
            "large numbers that cancel, such as exp(lambda), or a latent of another dtype",
        ),
        judge(
            "bfloat16 - float64",
            differences[torch.bfloat16],
            None,
            "0.02 to 0.1",
            "bfloat16 has 8 bits: noise of 14.6 is rounded to 0.06",
        ),
    ]


@lru_cache
def guided_mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Guidance as one column of the batch, the start, and the solution (k_heun, 1000 steps)."""
    guidance = torch.tensor(GUIDANCES, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = latent(HIGH, size=4).expand(len(GUIDANCES), -1, -1, -1)
    return guidance, x, result(k_heun, guided_by(guidance), x, karras(1000))


def guided_by(guidance: Tensor):
    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        eps_uncond = MIXTURE(x, sigma)
        return eps_uncond + guidance * (PROMPTED(x, sigma) - eps_uncond)

    return predict_eps


def guidance_errors(sampler: Sampler, steps: int) -> tuple[list[tuple[float, float]], int]:
    guidance, x, exact = guided_mixture()
    model = Recorder(guided_by(guidance))
    x_end = result(sampler, model, x, karras(steps))
    return [(g, rms(a - b)) for g, a, b in zip(GUIDANCES, x_end, exact)], len(model.calls)


def check_guidance(subject: Subject) -> list[Line]:
    """Guidance 1 to 20: it makes the ODE stiff, and methods of high order break first.

    Compared with k_euler at the same number of calls: Lu et al. 2022 (DPM-Solver++) found that
    their first solver loses to DDIM, which is Euler, under strong guidance.
    """
    if subject.ode_draws:
        return []
    points, calls = guidance_errors(subject.ode, 20)
    euler, _ = guidance_errors(k_euler, calls)
    at = dict(points)
    better = [g for (g, error), (_, other) in zip(points, euler) if error <= other * (1 + EXACT)]
    nonsense = sum(not math.isfinite(error) for _, error in points)
    return [
        judge(
            "guidance 7.5: error, 20 steps",
            at[7.5],
            None,
            f"k_euler in as many calls: {dict(euler)[7.5]:.2g}",
            "an unstable method: strong guidance gives burnt colours, more steps help",
            {"this sampler": points, f"k_euler, {calls} calls": euler},
        ),
        judge(
            "guidance up to which it beats k_euler",
            max(better, default=0.0),
            None,
            "20 is best",
            "high orders lose to Euler where guidance is strong: so it is, not a bug",
        ),
        judge(
            "guidance 1 to 20: results not finite",
            nonsense,
            nonsense == 0,
            "0",
            "a division by a step length or a slope that can be 0",
        ),
    ]


CHECKS = [
    check_order,
    check_uneven,
    check_degrees,
    check_law,
    check_gain,
    check_middle,
    check_refinement,
    check_precision,
    check_guidance,
]
