"""Checks of the contract in samplers.py: what every sampler must do, whatever its method.

Each check is a function of a Subject and returns lines of the card. All models are exact and all
arithmetic is float64, so every deviation is the sampler's own.
"""

import inspect
import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from minisd.img2img import img2img
from minisd.lab import card
from minisd.lab.card import Check, Line
from minisd.lab.exact import Pictures, as_sd
from minisd.lab.subject import (
    FLOAT32_NOISE,
    HIGH,
    LOW,
    MIXTURE,
    POINT,
    SCHEDULES,
    Recorder,
    Subject,
    all_steps,
    count_draws,
    draws_between,
    final_latent,
    late_schedules,
    latent,
    rms,
    step_iterator,
)
from minisd.run import Event, Noised
from minisd.samplers import Step
from minisd.schedule import karras, model, start_index


def check_steps(subject: Subject) -> list[Line]:
    """One Step for each pair of levels, with true contents; no argument is changed."""
    wrong_steps = wrong_reports = changed = 0
    for sigmas in late_schedules():
        x = latent(sigmas[0], 0.3)
        x_copy, sigmas_copy = x.clone(), list(sigmas)
        model = Recorder(MIXTURE)
        steps = all_steps(subject.sampler, model, x, sigmas)
        if not torch.equal(x, x_copy) or sigmas != sigmas_copy:
            changed += 1
        if any(not torch.equal(eps, copy) for eps, copy in model.answers):
            changed += 1
        levels = [(step.i, step.sigma, step.sigma_next) for step in steps]
        if levels != [(i, *pair) for i, pair in enumerate(pairwise(sigmas_copy))]:
            wrong_steps += 1
        x_before = x_copy
        for step in steps:
            same_type = step.x_next.shape == x.shape and step.x_next.dtype == x.dtype
            if not (torch.equal(step.x, x_before) and same_type and was_predicted(step, model)):
                wrong_reports += 1
            x_before = step.x_next
    if all_steps(subject.sampler, MIXTURE, latent(0.0), [0.0]):  # strength 0
        wrong_steps += 1
    return [
        card.WRONG_STEPS.line(wrong_steps),
        card.WRONG_REPORTS.line(wrong_reports),
        card.CHANGED_ARGUMENTS.line(changed),
        card.CHANGED_DTYPE.line(len(subject.lost_dtypes)),
    ]


def was_predicted(step: Step, model: Recorder) -> bool:
    """Whether the network was called at the Step's x and sigma and answered its eps."""
    return any(
        sigma == step.sigma and torch.equal(x, step.x) and torch.equal(eps, step.eps)
        for (x, sigma), (_, eps) in zip(model.calls, model.answers)
    )


def check_calls(subject: Subject) -> list[Line]:
    """How often the network is called, and at which noise levels."""
    outside = 0
    for sigmas in late_schedules():
        model = Recorder(POINT)
        all_steps(subject.sampler, model, latent(sigmas[0], 0.7, 0.0), sigmas)
        for _, sigma in model.calls:
            # 1e-6: a computed level, such as sqrt(a * b), may pass the limits by its rounding.
            if not LOW * (1 - 1e-6) <= sigma <= HIGH * (1 + 1e-6):
                outside += 1
    model = Recorder(POINT)
    all_steps(subject.sampler, model, latent(HIGH, 0.7, 0.0), karras(10))
    return [known(card.CALLS, len(model.calls), subject.theory.calls), card.LEVELS.line(outside)]


def known(check: Check, value: float, wanted: int | None) -> Line:
    """The line passes if the value is the one that theory gives; without one it is measured."""
    if wanted is None:
        return check.line(value)
    return check.line(value, value == wanted, f"{wanted}")


def check_noise(subject: Subject) -> list[Line]:
    """Is sigma the noise in x, at every network call and at the end?

    If the data is a single point, x - point is only noise: the noise of the start, and the
    sampler's draws. The draws are known, one latent of x's shape for each step from the generator.
    So the share of each in x follows from a linear fit without a remainder, and the noise present
    is the root of the sum of the squared shares.
    """
    wrong_sigma = wrong_end = lost = foreign = 0.0
    for sigmas in late_schedules():
        noise = latent(0.0)
        stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
        model = Recorder(POINT)
        steps = all_steps(subject.sampler, model, 0.7 + sigmas[0] * noise, sigmas, used)
        draws = draws_between(stream, used, noise.shape)
        xs = [x for x, _ in model.calls] + [steps[-1].x_next]
        shares, remainder = fit([noise, *(draws or [])], xs)
        present = shares[1:].norm(dim=0).tolist()
        passed = [sigma for _, sigma in model.calls]
        wrong_sigma = max([wrong_sigma, *(abs(p / s - 1) for p, s in zip(present, passed))])
        wrong_end = max(wrong_end, abs(present[-1] - sigmas[-1]))
        lost = max(lost, (shares[0] - 0.7).abs().max().item())
        foreign = math.inf if draws is None else max(foreign, remainder)
    return [
        check.line(value, value <= subject.noise_limit)
        for check, value in (
            (card.PASSED_SIGMA, wrong_sigma),
            (card.LAST_SIGMA, wrong_end),
            (card.LOST_PICTURE, lost),
            (card.FOREIGN_NOISE, foreign),
        )
    ]


def fit(noises: list[Tensor], xs: list[Tensor]) -> tuple[Tensor, float]:
    """Each x as constant + sum of share * noise: (1 + noises, xs), and the largest remainder."""
    columns = torch.stack([torch.ones_like(noises[0]), *noises]).flatten(1).T
    targets = torch.stack(xs).flatten(1).T
    shares = torch.linalg.lstsq(columns, targets).solution
    return shares, (columns @ shares - targets).abs().max().item()


def check_draws(subject: Subject) -> list[Line]:
    """How much noise is drawn, and whether eta 0 switches it off.

    The share of fresh noise in x_next can be measured in a single step. DDPM's, which is that of
    eta 1, is sigma_next * sqrt(1 - (sigma_next / sigma)^2).
    """
    theory = subject.theory
    draws = count_draws(subject.sampler)
    lines = [known(card.NORMALS, math.nan if draws is None else draws, theory.normals)]
    if "eta" in inspect.signature(subject.sampler).parameters:
        draws_eta_0 = count_draws(subject.ode)
        lines.append(card.NORMALS_ETA_0.line(draws_eta_0 or 0, passed=draws_eta_0 == 0))
    if draws:
        ratios = [fresh_noise_share(subject, *levels) for levels in LEVEL_PAIRS]
        eta = max(ratios, key=lambda ratio: abs(ratio - (theory.eta or 1.0)))
        if theory.eta is None:
            lines.append(card.ETA.line(eta))
        else:
            right = abs(eta - theory.eta) < subject.noise_limit
            lines.append(card.ETA.line(eta, right, f"{theory.eta:g}"))
    return lines


LEVEL_PAIRS = ((HIGH, 9.0), (2.0, 1.5), (0.2, 0.05))


def fresh_noise_share(subject: Subject, sigma: float, sigma_next: float) -> float:
    """The fresh noise of one step, in units of DDPM's."""
    noise = latent(0.0)
    stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
    steps = all_steps(subject.sampler, POINT, 0.7 + sigma * noise, [sigma, sigma_next], used)
    draws = draws_between(stream, used, noise.shape) or []
    shares, _ = fit([noise, *draws], [steps[-1].x_next])
    fresh = shares[2:].pow(2).sum().sqrt().item()
    return fresh / (sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5)


def check_repeats(subject: Subject) -> list[Line]:
    """A run repeats exactly. It depends on no other run, global state, or picture of the batch."""
    sigmas = model(10)[2:]
    x, other = latent(sigmas[0]), latent(sigmas[0], std=2.0, size=16)
    repeat = partial(final_latent, subject.sampler, MIXTURE, x, sigmas)
    first = repeat()

    global_uses = 0
    global_state = torch.get_rng_state()
    repeat()
    if not torch.equal(global_state, torch.get_rng_state()):
        global_uses += 1
    if subject.draws and runs_without_generator(subject):
        global_uses += 1
    torch.manual_seed(99)
    if not torch.equal(first, repeat()):
        global_uses += 1
    torch.set_rng_state(global_state)

    changed = 0
    abandoned = step_iterator(subject.sampler, MIXTURE, other, karras(7))
    next(abandoned)
    if not torch.equal(first, repeat()):
        changed += 1
    next(abandoned)
    twin_runs = (step_iterator(subject.sampler, MIXTURE, x, sigmas) for _ in range(2))
    *_, last_steps = zip(*twin_runs)  # the two runs take turns
    if not all(torch.equal(first, step.x_next) for step in last_steps):
        changed += 1
    final_latent(subject.sampler, MIXTURE, other, karras(5))
    if not torch.equal(first, repeat()):
        changed += 1

    batch = final_latent(subject.sampler, MIXTURE, torch.cat([x, x.flip(-1), -x]), sigmas)
    third_changed = torch.cat([x, x.flip(-1), 3 * x + 1])
    other_batch = final_latent(subject.sampler, MIXTURE, third_changed, sigmas)
    influence = (batch - other_batch)[:2].abs().max().item()
    twins = final_latent(subject.sampler, MIXTURE, torch.cat([x, x]), sigmas)
    shared = subject.draws and torch.equal(twins[0], twins[1])
    return [
        card.GLOBAL_GENERATOR.line(global_uses),
        card.OTHER_RUNS.line(changed),
        card.NEIGHBOURS.line(influence),
        card.SHARED_NOISE.line(1 if shared else 0),
    ]


def runs_without_generator(subject: Subject) -> bool:
    """Whether the sampler runs without a generator, where it must refuse: it draws noise."""
    try:
        list(subject.sampler(POINT, latent(HIGH), karras(4)))
    except (ValueError, TypeError):
        return False
    return True


def check_batch(subject: Subject) -> list[Line]:
    """In a batch of several seeds, each picture must be the one that its seed gives alone.

    This is part of the contract, so a sampler that draws rightly for one seed only fails: img2img
    with a list of seeds would raise an error in it, or draw other pictures than the seeds name.
    """
    if not subject.draws:
        return []
    sigmas, seeds = model(10)[2:], (5, 6)
    x = torch.cat([latent(sigmas[0]), latent(sigmas[0]).flip(-1)])
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    try:
        batch = all_steps(subject.sampler, MIXTURE, x, sigmas, rngs)[-1].x_next
    except Exception:  # torch.randn does not take a list of generators
        return [card.OWN_NOISE.line(len(seeds))]
    wrong = 0
    for picture, start, seed in zip(batch, x, seeds, strict=True):
        rng = torch.Generator().manual_seed(seed)
        alone = all_steps(subject.sampler, MIXTURE, start[None], sigmas, rng)[-1].x_next
        if not (picture - alone[0]).abs().max() < FLOAT32_NOISE:
            wrong += 1
    return [card.OWN_NOISE.line(wrong)]


def check_img2img(subject: Subject) -> list[Line]:
    """The real img2img, with an exact network that knows one picture only.

    The result must be that picture at every strength, on every schedule. The limit is 2e-3: the
    network gets the timestep in float32, so levels are 3e-7 off, with noise of 14.6 and a gain of
    up to 30 on top. The noise of 0.0292 that the ddim schedule leaves is measured to 1 %, which is
    its standard error over 4096 numbers: the limit is six times as far.
    """
    picture = latent(0.0, 0.2, 0.8, size=32).float()
    difference = wrong_sigma = 0.0
    broken = 0
    for schedule in SCHEDULES.values():
        for strength in (0.0, 0.1, 0.5, 1.0):
            events: list[Event] = []
            network = Recorder(Pictures(picture))
            result = img2img(
                as_sd(network),
                "",
                picture,
                strength=strength,
                steps=10,
                sampler=subject.sampler,
                schedule=schedule,
                guidance=1.0,  # the network knows no texts
                seed=3,
                observe=events.append,
            )
            steps = [event for event in events if isinstance(event, Step)]
            noised = next(event for event in events if isinstance(event, Noised))
            sigma_end = steps[-1].sigma_next if steps else 0.0
            x = result.latent * (sigma_end**2 + 1) ** 0.5
            difference = max(difference, abs(rms(x - picture) - sigma_end))
            if len(steps) != 10 - start_index(10, strength):
                broken += 1
            if steps:
                x, sigma_passed = network.calls[0]
                present = rms(x - picture) / rms(noised.noise)
                wrong_sigma = max(wrong_sigma, abs(present / sigma_passed - 1))
                if noised.sigma != steps[0].sigma:
                    broken += 1
                if not torch.equal(noised.x, steps[0].x):
                    broken += 1
    return [
        card.KNOWN_PICTURE.line(difference),
        card.INSERTED_SIGMA.line(wrong_sigma),
        card.FIRST_STEP.line(broken),
    ]


CHECKS = [
    check_steps,
    check_calls,
    check_noise,
    check_draws,
    check_repeats,
    check_batch,
    check_img2img,
]
