"""Checks of the contract in samplers.py: what a sampler must do whatever its method is.

Each check is a function of a Subject and gives lines of the card. All models are exact and all
arithmetic is float64, so what a check finds is the sampler's doing.
"""

import inspect
import math
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd.lab.exact import Pictures, as_unet
from minisd.lab.subject import (
    EXACT,
    HIGH,
    LOW,
    MIXTURE,
    POINT,
    Line,
    Recorder,
    Subject,
    count_draws,
    draws_between,
    judge,
    late_entries,
    latent,
    result,
    rms,
    run,
    start,
)
from minisd.schedule import SCHEDULES, karras, start_index
from minisd.step import PredictEps


def check_steps(subject: Subject) -> list[Line]:
    """One Step for each gap, telling the truth, and nothing that was given is changed."""
    out_of_line = untrue = changed = 0
    for sigmas in late_entries():
        x = latent(sigmas[0], 0.3)
        x_given, sigmas_given = x.clone(), list(sigmas)
        model = Recorder(MIXTURE)
        steps = run(subject.sampler, model, x, sigmas)
        changed += not torch.equal(x, x_given) or sigmas != sigmas_given
        changed += any(not torch.equal(eps, copy) for eps, copy in model.answers)
        told = [(step.i, step.sigma, step.sigma_next) for step in steps]
        out_of_line += told != [(i, *gap) for i, gap in enumerate(pairwise(sigmas_given))]
        x_before = x_given
        for step in steps:
            asked = any(
                sigma == step.sigma and torch.equal(x, step.x) and torch.equal(eps, step.eps)
                for (x, sigma), (_, eps) in zip(model.calls, model.answers)
            )
            same_kind = step.x_next.shape == x.shape and step.x_next.dtype == x.dtype
            untrue += not (asked and same_kind and torch.equal(step.x, x_before))
            x_before = step.x_next
    out_of_line += run(subject.sampler, MIXTURE, latent(0.0), [0.0]) != []  # strength 0
    return [
        judge(
            "runs with other steps than the grid's",
            out_of_line,
            out_of_line == 0,
            "0",
            "off by one: a step skipped or done twice, or told other levels than the grid's",
        ),
        judge(
            "Steps that say other than what was done",
            untrue,
            untrue == 0,
            "0",
            "x, eps or x_next of a Step isn't what the network saw or said, or what comes next",
        ),
        judge(
            "runs that change what they are given",
            changed,
            changed == 0,
            "0",
            "in-place arithmetic: it overwrites the caller's latent, or slopes needed again",
        ),
    ]


def check_calls(subject: Subject) -> list[Line]:
    """How often the network is called, and at which levels."""
    outside = 0
    for sigmas in late_entries():
        model = Recorder(POINT)
        run(subject.sampler, model, latent(sigmas[0], 0.7, 0.0), sigmas)
        # 1e-6: a level that is computed, such as sqrt(a * b), may miss an end by its rounding
        outside += sum(not LOW * (1 - 1e-6) <= s <= HIGH * (1 + 1e-6) for _, s in model.calls)
    model = Recorder(POINT)
    run(subject.sampler, model, latent(HIGH, 0.7, 0.0), karras(10))
    calls, wanted = len(model.calls), subject.theory.calls
    return [
        judge(
            "network calls in 10 steps",
            calls,
            None if wanted is None else calls == wanted,
            "any" if wanted is None else str(wanted),
            "a step is taken for the first or the last one, or a call is made and not used",
        ),
        judge(
            "calls outside of the trained levels",
            outside,
            outside == 0,
            "0",
            "the network is asked at sigma 0, or at a level that it doesn't know",
        ),
    ]


def check_noise(subject: Subject) -> list[Line]:
    """Is the noise in x what the network is told, at every call? And the grid's, at the end?

    Where the data is a single point, x - point is nothing but noise: the start's, and what the
    sampler drew. The draws are known, one normal of x's shape a step from the generator given, so
    how much of each is in x follows from a linear fit without rest: noise present^2 = sum of the
    shares^2.
    """
    told_wrong = left_wrong = lost = foreign = 0.0
    for sigmas in late_entries():
        noise = latent(0.0)
        stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
        model = Recorder(POINT)
        steps = run(subject.sampler, model, 0.7 + sigmas[0] * noise, sigmas, used)
        drawn = draws_between(stream, used, noise.shape)
        xs = [x for x, _ in model.calls] + [steps[-1].x_next]
        shares, rest = fit([noise, *(drawn or [])], xs)
        present = shares[1:].norm(dim=0).tolist()
        told = [sigma for _, sigma in model.calls]
        told_wrong = max([told_wrong, *(abs(p / t - 1) for p, t in zip(present, told))])
        left_wrong = max(left_wrong, abs(present[-1] - sigmas[-1]))
        lost = max(lost, (shares[0] - 0.7).abs().max().item())
        foreign = math.inf if drawn is None else max(foreign, rest)
    return [
        judge(
            "noise present / noise told - 1",
            told_wrong,
            told_wrong < EXACT,
            "0 at every call",
            "the network is told another level than x's (t for t - 1), or up and down don't add up",
        ),
        judge(
            "noise at the end - sigma there",
            left_wrong,
            left_wrong < EXACT,
            "0 on every grid",
            "the last step is missing or goes elsewhere: grain stays, or detail is gone",
        ),
        judge(
            "change of the picture under the noise",
            lost,
            lost < EXACT,
            "0",
            "a scale of the other convention, such as sqrt(abar), or weights that don't add up",
        ),
        judge(
            "noise from elsewhere",
            foreign,
            foreign < EXACT,
            "0",
            "drawn from the global generator, or other than one normal of x's shape a step",
        ),
    ]


def check_draws(subject: Subject) -> list[Line]:
    """How much noise is drawn, and whether the switch `eta` switches it off.

    In a single step the share of its fresh noise can be seen in x_next. DDPM's, and so that of
    eta 1, is sigma_next * sqrt(1 - (sigma_next / sigma)^2).
    """
    theory = subject.theory
    drawn = count_draws(subject.sampler)
    lines = [
        judge(
            "normals drawn in 10 steps",
            math.nan if drawn is None else drawn,
            None if theory.normals is None else drawn == theory.normals,
            "any" if theory.normals is None else str(theory.normals),
            "noise is drawn and not used, or in another shape: a seed gives other pictures",
        )
    ]
    if "eta" in inspect.signature(subject.sampler).parameters:
        lines.append(
            judge(
                "normals drawn with eta 0",
                count_draws(subject.ode) or 0,
                count_draws(subject.ode) == 0,
                "0",
                "eta isn't passed on",
            )
        )
    if drawn:
        noise, ratios = latent(0.0), []
        for sigma, sigma_next in ((HIGH, 9.0), (2.0, 1.5), (0.2, 0.05)):
            stream, used = (torch.Generator().manual_seed(7) for _ in range(2))
            step = run(subject.sampler, POINT, 0.7 + sigma * noise, [sigma, sigma_next], used)[-1]
            drawn_once = draws_between(stream, used, noise.shape) or []
            shares, _ = fit([noise, *drawn_once], [step.x_next])
            fresh = shares[2:].pow(2).sum().sqrt().item()
            ratios.append(fresh / (sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5))
        eta = max(ratios, key=lambda ratio: abs(ratio - (theory.eta or 1.0)))
        lines.append(
            judge(
                "fresh noise / that of DDPM",
                eta,
                None if theory.eta is None else abs(eta - theory.eta) < EXACT,
                "1 is DDPM's" if theory.eta is None else f"{theory.eta:g}",
                "another split of the noise: as right, perhaps, but not the sampler of that name",
            )
        )
    return lines


def fit(noises: list[Tensor], xs: list[Tensor]) -> tuple[Tensor, float]:
    """Each x as a constant + sum of share * noise: these (1 + noises, xs), and what is left."""
    columns = torch.stack([torch.ones_like(noises[0]), *noises]).flatten(1).T
    targets = torch.stack(xs).flatten(1).T
    shares = torch.linalg.lstsq(columns, targets).solution
    return shares, (columns @ shares - targets).abs().max().item()


def check_repeats(subject: Subject) -> list[Line]:
    """The same again is the same again: no memory between runs, no global state, no neighbours."""
    sigmas = SCHEDULES["model"](10)[2:]
    x, other = latent(sigmas[0]), latent(sigmas[0], std=2.0, size=16)
    again = partial(result, subject.sampler, MIXTURE, x, sigmas)
    first = again()

    global_before = torch.get_rng_state()
    again()
    used_global = not torch.equal(global_before, torch.get_rng_state())
    if subject.draws:  # with no generator given it must refuse, not fall back on the global one
        used_global += accepts(subject)
    torch.manual_seed(99)
    other_seed = not torch.equal(first, again())
    torch.set_rng_state(global_before)

    state = 0
    abandoned = start(subject.sampler, MIXTURE, other, karras(7))
    next(abandoned)
    state += not torch.equal(first, again())
    next(abandoned)
    one, two = (start(subject.sampler, MIXTURE, x, sigmas) for _ in range(2))
    *_, (last, last_other) = zip(one, two)  # in turns
    state += not torch.equal(first, last.x_next) or not torch.equal(first, last_other.x_next)
    result(subject.sampler, MIXTURE, other, karras(5))
    state += not torch.equal(first, again())

    batch = torch.cat([x, x.flip(-1), -x])
    changed = torch.cat([x, x.flip(-1), 3 * x + 1])
    together = result(subject.sampler, MIXTURE, batch, sigmas)
    apart = result(subject.sampler, MIXTURE, changed, sigmas)
    neighbours = (together - apart)[:2].abs().max().item()
    twins = result(subject.sampler, MIXTURE, torch.cat([x, x]), sigmas)
    shared = subject.draws and torch.equal(twins[0], twins[1])
    return [
        judge(
            "uses of the global generator",
            used_global + other_seed,
            not used_global + other_seed,
            "0",
            "torch.randn_like, or randn without generator=: no seed gives this picture again",
        ),
        judge(
            "results changed by other runs",
            state,
            state == 0,
            "0",
            "state outside of local variables: a global, a default, an attribute of the function",
        ),
        judge(
            "influence of a neighbour in the batch",
            neighbours,
            neighbours == 0,
            "0",
            "a mean, norm or maximum over the batch, where each picture should have its own",
        ),
        judge(
            "pictures of a batch with the same noise",
            shared,
            not shared,
            "0",
            "noise of the shape of one picture, or with a seed set anew for each",
        ),
    ]


def accepts(subject: Subject) -> bool:
    """Whether it draws noise without having been given a generator."""
    try:
        list(subject.sampler(POINT, latent(HIGH), karras(4)))
    except (ValueError, TypeError):
        return False
    return True


def check_img2img(subject: Subject) -> list[Line]:
    """The real `minisd.img2img`, with an exact network that knows one picture only.

    It must give that picture back at every strength, on every grid. 2e-3: the network is told the
    timestep in float32, so levels are 3e-7 off, with noise of 14.6 and a gain of up to 30 on top;
    and the noise of 0.0292 that DDIM's grid leaves is known to 4 % from 256 numbers.
    """
    picture = latent(0.0, 0.2, 0.8).float()
    difference = told_wrong = broken = 0.0
    for grid in SCHEDULES.values():
        for strength in (0.0, 0.1, 0.5, 1.0):
            noised, steps = [], []

            def observe(event: str, noised=noised, steps=steps, **values) -> None:
                if event == "noised":
                    noised.append(values)
                if event == "step":
                    steps.append(values["step"])

            network = Recorder(Pictures(picture))
            latent_out = minisd.img2img(
                one_picture_sd(network, picture),
                "",
                Image.new("RGB", (64, 64)),
                strength=strength,
                steps=10,
                sampler=subject.sampler,
                schedule=grid,
                seed=3,
                observe=observe,
            ).latent
            sigma_end = steps[-1].sigma_next if steps else 0.0
            x = latent_out * (sigma_end**2 + 1) ** 0.5
            difference = max(difference, abs(rms(x - picture) - sigma_end))
            broken += len(steps) != 10 - start_index(10, strength)
            if steps:
                x, sigma_told = network.calls[0]
                present = rms(x - picture) / rms(noised[0]["noise"])
                told_wrong = max(told_wrong, abs(present / sigma_told - 1))
                broken += noised[0]["sigma"] != steps[0].sigma
                broken += not torch.equal(noised[0]["x"], steps[0].x)
    return [
        judge(
            "img2img: change of a picture it knows",
            difference,
            difference < 2e-3,
            "< 0.002",
            "the noise put in, what the first step is told and what is taken out differ",
        ),
        judge(
            "img2img: noise put in / noise told - 1",
            told_wrong,
            told_wrong < 1e-4,  # x is float32, 1e-7 of 1, beside noise of 0.03
            "0",
            "the timestep is rounded or another step's, or the input isn't scaled to variance 1",
        ),
        judge(
            "img2img: runs where insertion and step 0 differ",
            broken,
            broken == 0,
            "0",
            "noise of another level than the first step starts from, or steps are missing",
        ),
    ]


def one_picture_sd(predict_eps: PredictEps, picture: Tensor) -> SimpleNamespace:
    """What img2img needs of a StableDiffusion: this model, an encoder that gives this picture."""
    vae = SimpleNamespace(
        encode=lambda image, noise=None: picture.clone(),
        decode=lambda latent: torch.zeros(1, 3, 64, 64),
        factor=8,
    )
    return SimpleNamespace(
        vae=vae,
        unet=as_unet(predict_eps),
        text_states=lambda prompt: torch.zeros(1, 77, 1),
        multiple=64,
        device=torch.device("cpu"),
    )


CHECKS = [check_steps, check_calls, check_noise, check_draws, check_repeats, check_img2img]
