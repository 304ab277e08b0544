"""Bugs on purpose: does the certificate find them? `python -m minisd.lab.bugs` tells.

Each bug is an edit of the samplers' own source (step.py, more_samplers.py, samplers.py) or of what
they are used by (img2img.py, guidance.py), of the kinds that the issue threads of this field are full
of. Beside the certificate stands what others' tests would do, a frozen sum and mean of |x|.
"""

import ast
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

import minisd
from minisd.lab.certificate import certify, theory_of
from minisd.lab.contract import one_picture_sd
from minisd.lab.exact import Pictures
from minisd.lab.subject import Sampler, latent, run
from minisd.samplers import SAMPLERS
from minisd.schedule import SCHEDULES, sigma_to_t

FOLDER = Path(minisd.__file__).parent


@dataclass(frozen=True)
class Bug:
    sampler: str
    label: str
    old: str | tuple[str, ...]  # one edit, or several
    new: str | tuple[str, ...]
    where: str = ""  # the function, constant or file that is edited; "": the sampler's own
    options: dict[str, float] = field(default_factory=dict)  # with which the bug shows


EPS = "eps = predict_eps(x, sigma)"
STEP = "x_next = x + (sigma_next - sigma) * eps"
DOWN = "x_next = x + (down - sigma) * eps"
SPLIT = "down, up = ancestral_step(sigma, sigma_next, eta)"
DRAW = "torch.randn(x.shape, generator=generator).to(x)"
YIELD = "yield Step(i, sigma, sigma_next, x, eps, x_next)"
LOOP = "enumerate(pairwise(sigmas))"

BUGS = [
    # every sampler's loop, seen in k_euler
    Bug("k_euler", "wrong sign", STEP, STEP.replace("x +", "x -")),
    Bug("k_euler", "last step skipped", LOOP, "enumerate(pairwise(sigmas[:-1]))"),
    Bug("k_euler", "first step skipped", LOOP, "enumerate(pairwise(sigmas[1:]))"),
    Bug("k_euler", "last step done twice", LOOP, "enumerate(pairwise([*sigmas, sigmas[-1]]))"),
    Bug("k_euler", "network told t - 1", EPS, "eps = predict_eps(x, sigma_next or sigma)"),
    Bug("k_euler", "network told t + 1", EPS, "eps = predict_eps(x, sigmas[max(i - 1, 0)])"),
    Bug("k_euler", "half a step", STEP, STEP + " / 2"),
    Bug("k_euler", "input scaled twice", EPS, "eps = predict_eps(x / (sigma**2 + 1) ** 0.5, sigma)"),
    Bug("k_euler", "x not carried on", "        x = x_next", "        pass"),
    Bug("k_euler", "x overwritten in place", STEP, "x_next = x.add_((sigma_next - sigma) * eps)"),
    Bug("k_euler", "eps overwritten in place", STEP, "x_next = x + eps.mul_(sigma_next - sigma)"),
    Bug("k_euler", "Step tells the next sigma", YIELD, YIELD.replace("sigma, sigma_next", "sigma_next, sigma")),
    Bug("k_euler", "Step shows x after", YIELD, YIELD.replace("x, eps, x_next", "x_next, eps, x_next")),
    Bug("k_euler", "Step counts from 1", YIELD, YIELD.replace("(i,", "(i + 1,")),
    Bug("k_euler", "Step shows another eps", YIELD, YIELD.replace("eps", "-eps")),
    Bug("k_euler", "levels in half precision", EPS, "eps = predict_eps(x, float(torch.tensor(sigma).half()))"),
    Bug("k_euler", "levels rounded to two digits", EPS, "eps = predict_eps(x, round(sigma, 2) or sigma)"),
    Bug("k_euler", "arithmetic in float32", STEP, "x_next = (x.float() + (sigma_next - sigma) * eps.float()).to(x)"),
    Bug("k_euler", "result in float32", STEP, STEP.replace("x +", "x.float() +")),
    Bug("k_euler", "x0 clipped to [-1, 1]", STEP, "eps = (x - (x - sigma * eps).clamp(-1, 1)) / sigma\n        " + STEP),
    Bug("k_euler", "threshold over the batch", STEP, "eps = eps / eps.std().clamp(min=1)\n        " + STEP),
    Bug("k_euler", "mean of the batch removed", STEP, STEP + " + 1e-4 * x.mean()"),
    Bug("k_euler", "stops at sigma 0.0292", STEP, "x_next = x + (max(sigma_next, 0.0292) - sigma) * eps"),
    Bug("k_euler", "steps in the scaled variable", STEP, "x_next = ((sigma_next**2 + 1) / (sigma**2 + 1)) ** 0.5 * x + (sigma_next - sigma) * eps"),
    Bug("k_euler", "step of the gap before", STEP, "x_next = x + (sigmas[i] - sigmas[max(i - 1, 0)]) * eps if i else x + (sigma_next - sigma) * eps"),
    Bug("k_euler", "unused global noise (old k-diffusion)", STEP, "torch.randn_like(x)\n        " + STEP),
    Bug("k_euler", "noise of the global generator", STEP, STEP + " + 1e-3 * sigma_next * torch.randn_like(x)"),
    Bug("k_euler", "slopes cached across runs", EPS, "eps = PLMS_WEIGHTS.setdefault((i, sigma), predict_eps(x, sigma))"),
    Bug("k_euler", "a bias of 0.1 %", STEP, STEP + " * 1.001"),
    Bug("k_euler", "network called twice", EPS, "predict_eps(x, sigma)\n        " + EPS),
    Bug("k_euler", "called at sigma 0", STEP, "predict_eps(x, sigma_next)\n        " + STEP),
    # the order of things with noise
    Bug("k_euler_a", "up and down swapped", "down, up =", "up, down ="),
    Bug("k_euler_a", "down ignored", DOWN, STEP),
    Bug("k_euler_a", "up ignored", "+ up * torch", "+ sigma_next * torch"),
    Bug("k_euler_a", "noise not scaled", "+ up * torch", "+ torch"),
    Bug("k_euler_a", "noise never added", "if up > 0", "if False"),
    Bug("k_euler_a", "global generator", DRAW, "torch.randn(x.shape).to(x)"),
    Bug("k_euler_a", "randn_like", DRAW, "torch.randn_like(x)"),
    Bug("k_euler_a", "the same noise each step", DRAW, "torch.randn(x.shape, generator=generator.manual_seed(1)).to(x)"),
    Bug("k_euler_a", "the batch shares its noise", DRAW, "torch.randn(x.shape[1:], generator=generator).to(x)"),
    Bug("k_euler_a", "a normal for the last step too", "if up > 0", "if eta > 0"),
    Bug("k_euler_a", "two normals a step", DRAW, f"(0.5**0.5 * ({DRAW} + {DRAW}))"),
    Bug("k_euler_a", "uniform noise", DRAW, "((2 * torch.rand(x.shape, generator=generator) - 1) * 3**0.5).to(x)"),
    Bug("k_euler_a", "noise before the step", DOWN, "x = x + up * torch.randn(x.shape, generator=generator).to(x)\n        " + DOWN),
    Bug("k_euler_a", "eta ignored", SPLIT, SPLIT.replace("eta", "1.0")),
    Bug("k_euler_a", "eta squared", SPLIT, SPLIT.replace("eta", "eta**2"), options={"eta": 0.7}),
    Bug("k_euler_a", "sigma and sigma_next swapped in the split", SPLIT, SPLIT.replace("sigma, sigma_next", "sigma_next, sigma")),
    Bug("k_euler_a", "a generator of its own if none is given", "check_eta(eta, generator)", "generator = generator or torch.Generator().manual_seed(0)"),
    Bug("k_euler_a", "variance for standard deviation", "+ up * torch", "+ up**2 * torch"),
    Bug("k_euler_a", "split: squares forgotten", "(sigma_next / sigma) ** 2", "sigma_next / sigma", "ancestral_step"),
    Bug("k_euler_a", "split: root forgotten", "up**2) ** 0.5, up", "up**2), up", "ancestral_step"),
    Bug("k_euler_a", "split: difference for root of squares", "(sigma_next**2 - up**2) ** 0.5", "sigma_next - up", "ancestral_step"),
    Bug("k_euler_a", "split: upside down", "(sigma_next / sigma) ** 2", "(sigma / (sigma + sigma_next)) ** 2", "ancestral_step"),
    Bug("ddim", "eta ignored", SPLIT, SPLIT.replace("eta", "0.0"), options={"eta": 1.0}),
    Bug("ddim", "down ignored", DOWN, STEP, options={"eta": 1.0}),
    Bug("ddim", "noise scaled by sigma", "+ up * torch", "+ sigma * torch", options={"eta": 1.0}),
    Bug("ddim", "one noise for all steps", "    for i, (sigma", f"    fixed = {DRAW} if eta else 0\n    for i, (sigma", options={"eta": 1.0}),
    Bug("ddim", "noise drawn with eta 0 too", "if eta > 0", "if generator"),
    Bug("ddim", "ends at the trained end", LOOP, "enumerate(pairwise([*sigmas[:-1], 0.0292]))"),
    Bug("ddim", "abar of the wrong step", DOWN, "x_next = x + (sigmas[min(i + 2, len(sigmas) - 1)] - sigma) * eps"),
    # two calls a step
    Bug("k_heun", "mean forgotten", "(eps + eps_next) / 2", "(eps + eps_next)"),
    Bug("k_heun", "only the second slope", "(eps + eps_next) / 2", "eps_next"),
    Bug("k_heun", "only the first slope", "(eps + eps_next) / 2", "eps"),
    Bug("k_heun", "parenthesis lost", "(eps + eps_next) / 2", "(eps + eps_next / 2)"),
    Bug("k_heun", "thirds", "(eps + eps_next) / 2", "(2 * eps + eps_next) / 3"),
    Bug("k_heun", "difference", "(eps + eps_next) / 2", "(eps - eps_next) / 2"),
    Bug("k_heun", "second call told sigma", "predict_eps(x_next, sigma_next)", "predict_eps(x_next, sigma)"),
    Bug("k_heun", "second call at x", "predict_eps(x_next, sigma_next)", "predict_eps(x, sigma_next)"),
    Bug("k_heun", "called at sigma 0", "if sigma_next > 0", "if sigma_next >= 0"),
    Bug("k_heun", "never corrected", "if sigma_next > 0", "if sigma_next > 20"),
    Bug("k_heun", "correction from x_next", "x_next = x + (sigma_next - sigma) * (eps", "x_next = x_next + (sigma_next - sigma) * (eps"),
    Bug("k_heun", "Step shows the second slope", YIELD, "yield Step(i, sigma, sigma_next, x, eps_next if sigma_next else eps, x_next)"),
    Bug("k_heun", "not corrected where i is 0", "if sigma_next > 0", "if sigma_next > 0 and i > 0"),
    Bug("k_heun", "corrected every other step", "if sigma_next > 0", "if sigma_next > 0 and i % 2"),
    Bug("k_dpm_2", "arithmetic midpoint", "(sigma * sigma_next) ** 0.5", "(sigma + sigma_next) / 2", "midpoint_eps"),
    Bug("k_dpm_2", "midpoint: told sigma", "middle)\n", "sigma)\n", "midpoint_eps"),
    Bug("k_dpm_2", "midpoint: at x", "predict_eps(x + (middle - sigma) * eps, middle)", "predict_eps(x, middle)", "midpoint_eps"),
    Bug("k_dpm_2", "midpoint: a whole step", "(middle - sigma)", "(sigma_next - sigma)", "midpoint_eps"),
    Bug("k_dpm_2", "midpoint: wrong sign", "(middle - sigma)", "(sigma - middle)", "midpoint_eps"),
    Bug("k_dpm_2", "midpoint: root lost", "(sigma * sigma_next) ** 0.5", "(sigma * sigma_next**3) ** 0.25", "midpoint_eps"),
    Bug("k_dpm_2", "slope of the start", "* slope", "* eps"),
    Bug("k_dpm_2", "Euler where it isn't the end", "sigma_next == 0", "sigma_next <= 0.5"),
    Bug("k_dpm_2", "called at sigma 0", "sigma_next == 0", "sigma_next < 0"),
    Bug("k_dpm_2", "step to the middle", "x_next = x + (sigma_next - sigma)", "x_next = x + ((sigma * sigma_next) ** 0.5 - sigma)"),
    Bug("k_dpm_2_a", "midpoint on the way to sigma_next", "eps, sigma, down)", "eps, sigma, sigma_next)"),
    Bug("k_dpm_2_a", "step to sigma_next", "(down - sigma)", "(sigma_next - sigma)"),
    Bug("k_dpm_2_a", "noise never added", "if up > 0", "if False"),
    Bug("k_dpm_2_a", "global generator", DRAW, "torch.randn(x.shape).to(x)"),
    Bug("k_dpm_2_a", "slope of the start", "* slope", "* eps"),
    Bug("k_dpm_2_a", "noise at the middle too", "slope = eps if", "x = x + 0.1 * up * torch.randn(x.shape, generator=generator).to(x)\n        slope = eps if"),
    Bug("k_dpmpp_2_a", "x0 of the start", "expm1(-h) * x0_middle", "expm1(-h) * x0"),
    Bug("k_dpmpp_2_a", "half step forgotten", "expm1(-h / 2)", "expm1(-h)"),
    Bug("k_dpmpp_2_a", "second call told sigma", "predict_eps(u, middle)", "predict_eps(u, sigma)"),
    Bug("k_dpmpp_2_a", "x0 with sigma for middle", "u - middle *", "u - sigma *"),
    Bug("k_dpmpp_2_a", "lambda upside down", "h = log(sigma / down)", "h = log(down / sigma)"),
    Bug("k_dpmpp_2_a", "step to sigma_next", "down / sigma * x", "sigma_next / sigma * x"),
    Bug("k_dpmpp_2_a", "arithmetic midpoint", "(sigma * down) ** 0.5", "(sigma + down) / 2"),
    Bug("k_dpmpp_2_a", "h of the whole step", "h = log(sigma / down)", "h = log(sigma / max(sigma_next, down))"),
    Bug("k_dpmpp_2_a", "noise twice", "+ up * torch", "+ 2**0.5 * up * torch"),
    # with a memory
    Bug("k_dpmpp_2", "r upside down", "r = h_last / h", "r = h / h_last"),
    Bug("k_dpmpp_2", "wrong sign of the extrapolation", "- 1 / (2 * r) * x0_last", "+ 1 / (2 * r) * x0_last"),
    Bug("k_dpmpp_2", "extrapolated too far", "(1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last", "(1 + 1 / r) * x0 - 1 / r * x0_last"),
    Bug("k_dpmpp_2", "extrapolated backwards", "(1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_last", "(1 - 1 / (2 * r)) * x0 + 1 / (2 * r) * x0_last"),
    Bug("k_dpmpp_2", "r taken as 1", "r = h_last / h", "r = 1"),
    Bug("k_dpmpp_2", "never extrapolated", "if x0_last is not None", "if False"),
    Bug("k_dpmpp_2", "the last step's length kept", "h_last = h\n", "h_last = h_last or h\n"),
    Bug("k_dpmpp_2", "remembers the extrapolated x0", "x_next, x0\n", "x_next, d\n"),
    Bug("k_dpmpp_2", "remembers the first x0", "x, x0_last = x_next, x0", "x, x0_last = x_next, x0 if x0_last is None else x0_last"),
    Bug("k_dpmpp_2", "expm1(h)", "expm1(-h)", "expm1(h)"),
    Bug("k_dpmpp_2", "sigma upside down", "sigma_next / sigma * x", "sigma / sigma_next * x"),
    Bug("k_dpmpp_2", "sigma 0 not treated", "if sigma_next == 0", "if sigma_next < 0"),
    Bug("k_dpmpp_2", "x0 without sigma", "x0 = d = x - sigma * eps", "x0 = d = x - eps"),
    Bug("k_dpmpp_2", "memory kept between runs", ("x0_last, h_last = None, 0.0", "x0_last = x_next, x0"), ("x0_last, h_last = getattr(k_dpmpp_2, 'last', (None, 0.0))", "x0_last = x_next, x0\n        k_dpmpp_2.last = x0, h_last")),
    Bug("k_dpmpp_2", "logarithm to base 2", "log(sigma / sigma_next)", "log(sigma / sigma_next) / log(2)"),
    Bug("plms", "55 -> 54", "55 / 24", "54 / 24", "PLMS_WEIGHTS"),
    Bug("plms", "59 -> 58, 37 -> 36", "-59 / 24, 37 / 24", "-58 / 24, 36 / 24", "PLMS_WEIGHTS"),
    Bug("plms", "37 and 9 swapped", "37 / 24, -9 / 24", "-9 / 24, 37 / 24", "PLMS_WEIGHTS"),
    Bug("plms", "23, 16, 5 over 24", "(23 / 12, -16 / 12, 5 / 12)", "(23 / 24, -16 / 24, 5 / 24)", "PLMS_WEIGHTS"),
    Bug("plms", "23 -> 22, 16 -> 15", "(23 / 12, -16 / 12", "(22 / 12, -15 / 12", "PLMS_WEIGHTS"),
    Bug("plms", "second step: -1/2 -> 1/2", "(3 / 2, -1 / 2)", "(3 / 2, 1 / 2)", "PLMS_WEIGHTS"),
    Bug("plms", "second step as the first", "(3 / 2, -1 / 2)", "(1, 0)", "PLMS_WEIGHTS"),
    Bug("plms", "oldest first", "[eps, *history][:4]", "[*history, eps][-4:]"),
    Bug("plms", "three slopes only", "[eps, *history][:4]", "[eps, *history][:3]"),
    Bug("plms", "Euler for the first step", "elif sigma_next > 0", "elif False"),
    Bug("plms", "improved Euler in every step (old img2img)", "history = [eps, *history][:4]", "history = [eps]"),
    Bug("plms", "mean forgotten in the first step", "* eps, sigma_next)) / 2", "* eps, sigma_next))"),
    Bug("plms", "first step: second call told sigma", "* eps, sigma_next)) / 2", "* eps, sigma)) / 2"),
    Bug("plms", "remembers averages", "x_next = x + (sigma_next", "history[0] = slope\n        x_next = x + (sigma_next"),
    Bug("plms", "order by absolute step index", "PLMS_WEIGHTS[len(history)]", "PLMS_WEIGHTS[4]"),
    Bug("plms", "memory kept between runs", "[eps, *history][:4]", "plms.history = [eps, *getattr(plms, 'history', [])][:4]"),
    Bug("k_lms", "order by absolute step index (diffusers)", "min(len(history), orders[i])", "orders[i]"),
    Bug("k_lms", "oldest first", "[eps, *history][:order]", "[*history, eps][-order:]"),
    Bug("k_lms", "memory one too short", "[eps, *history][:order]", "[eps, *history][: max(1, order - 1)]"),
    Bug("k_lms", "the newest slope twice", "history = [eps, *history]", "history = [eps, eps, *history]"),
    Bug("k_lms", "weights of the last step", "lms_weights(sigmas, i,", "lms_weights(sigmas, max(i - 1, 0),"),
    Bug("k_lms", "weights reversed", "for w, slope in zip(weights, history)", "for w, slope in zip(weights[::-1], history)"),
    Bug("k_lms", "remembers x0", "history = [eps, *history]", "history = [x - sigma * eps, *history]"),
    Bug("k_lms", "memory kept between runs", "[eps, *history][:order]", "k_lms.history = [eps, *getattr(k_lms, 'history', [])][:order]"),
    Bug("k_lms", "memory in a default argument", ("max_gain: float | None = None,\n", "    history: list[Tensor] = []", "history = [eps, *history][:order]"), ("max_gain: float | None = None,\n    history: list = [],\n", "    #", "history.insert(0, eps)")),
    Bug("k_lms", "order one less than asked", "min(len(history), orders[i])", "max(1, min(len(history), orders[i]) - 1)"),
    Bug("k_lms", "nodes: off by one", "[sigmas[i - j] for", "[sigmas[i + 1 - j] for", "lms_weights"),
    Bug("k_lms", "nodes: as on an even grid", "[sigmas[i - j] for", "[sigmas[i] + j * (sigmas[i] - sigmas[i + 1]) for", "lms_weights"),
    Bug("k_lms", "Gauss rule: 1/3 for its root", "half / 3**0.5", "half / 3", "lms_weights"),
    Bug("k_lms", "Gauss rule: midpoint only", "half / 3**0.5", "0", "lms_weights"),
    Bug("k_lms", "trapezoid of two points", "half / 3**0.5", "half", "lms_weights"),
    Bug("k_lms", "integral without its length", "return [half * sum", "return [sum", "lms_weights"),
    Bug("k_lms", "integral of the whole length", "return [half * sum", "return [2 * half * sum", "lms_weights"),
    Bug("k_lms", "Lagrange: numerator of j", "(sigma - node) / (nodes[j] - node)", "(sigma - nodes[j]) / (nodes[j] - node)", "lms_weights"),
    Bug("k_lms", "Lagrange: wrong sign", "(nodes[j] - node)", "(node - nodes[j])", "lms_weights"),
    Bug("k_lms", "Lagrange: k < j", "if k != j", "if k < j", "lms_weights"),
    Bug("k_lms", "guard: no absolute value", "sum(map(abs, trial))", "sum(trial)", "guarded_orders", {"max_gain": 1.1}),
    Bug("k_lms", "guard: only the last step", "totals = trial", "pass", "guarded_orders", {"max_gain": 1.1}),
    Bug("k_lms", "guard: sigma 15 whatever the start", "/ sigmas[0]  #", "/ 14.6  #", "guarded_orders", {"max_gain": 1.1}),
    Bug("k_lms", "guard: lowest order first", "range(min(order, i + 1), 0, -1)", "range(1, min(order, i + 1) + 1)", "guarded_orders", {"max_gain": 1.1}),
    # around the sampler
    Bug("k_euler", "img2img: noise of the next level", "x = x0 + sigmas[0] * noise", "x = x0 + sigmas[min(1, len(sigmas) - 1)] * noise", "img2img.py"),
    Bug("k_euler", "img2img: noise as DDIM's paper has it", "x = x0 + sigmas[0] * noise", "x = (x0 + sigmas[0] * noise) / (sigmas[0] ** 2 + 1) ** 0.5", "img2img.py"),
    Bug("k_euler", "img2img: picture scaled twice (InvokeAI, October 2022)", "x = x0 + sigmas[0] * noise", "x = sigmas[0] * (x0 + sigmas[0] * noise) / (sigmas[0] ** 2 + 1) ** 0.5", "img2img.py"),
    Bug("k_euler", "img2img: a step too few", "[start_index(steps, strength) :]", "[min(start_index(steps, strength) + 1, steps) :]", "img2img.py"),
    Bug("k_euler", "img2img: a step too many", "[start_index(steps, strength) :]", "[max(start_index(steps, strength) - 1, 0) :]", "img2img.py"),
    Bug("k_euler", "img2img: denoising starts a level lower (CompVis)", "sample(predict_eps, x, sigmas,", "sample(predict_eps, x, sigmas[1:] or sigmas,", "img2img.py"),
    Bug("k_euler", "img2img: the picture is forgotten", "x = x0 + sigmas[0] * noise", "x = sigmas[0] * noise", "img2img.py"),
    Bug("k_euler", "img2img: the last step is not taken over", "        x = step.x_next", "        x = step.x", "img2img.py"),
    Bug("k_euler", "img2img: noise of half the spread", "x = x0 + sigmas[0] * noise", "x = x0 + 0.5 * sigmas[0] * noise", "img2img.py"),
    Bug("k_euler", "guidance: input not scaled", "x_in = x / (sigma**2 + 1) ** 0.5", "x_in = x", "guidance.py"),
    Bug("k_euler", "guidance: input scaled by the variance", "(sigma**2 + 1) ** 0.5", "(sigma**2 + 1)", "guidance.py"),
    Bug("k_euler", "guidance: timestep upside down", "sigma_to_t(sigma)", "999 - sigma_to_t(sigma)", "guidance.py"),
    Bug("k_euler", "guidance: timestep one too low", "sigma_to_t(sigma)", "max(sigma_to_t(sigma) - 1, 0)", "guidance.py"),
    Bug("k_euler", "guidance: timestep rounded down", "sigma_to_t(sigma)", "int(sigma_to_t(sigma))", "guidance.py"),
]  # fmt: skip


def source_of(*files: str) -> str:
    """The files as one, without what they import from each other."""
    text = "\n".join((FOLDER / file).read_text() for file in files)
    names = "|".join(file.removesuffix(".py") for file in files)
    return re.sub(rf"^from minisd\.({names}) import (\([^)]*\)|.*)\n", "", text, flags=re.MULTILINE)


def edited(source: str, bug: Bug) -> str:
    """The source with the bug in the function or constant that it belongs to, or anywhere in a file."""
    block = source
    if not bug.where.endswith(".py"):
        for node in ast.parse(source).body:
            targets = getattr(node, "targets", [node])
            if (bug.where or bug.sampler) in (
                getattr(t, "name", getattr(t, "id", "")) for t in targets
            ):
                block = ast.get_source_segment(source, node) + "\n"
    olds, news = ([x] if isinstance(x, str) else x for x in (bug.old, bug.new))
    changed = block
    for old, new in zip(olds, news):
        if old not in changed:
            raise LookupError(f"{bug.sampler}, {bug.label}: the source has changed, no {old!r}")
        changed = changed.replace(old, new)
    return source.replace(block, changed)


def with_bug(bug: Bug) -> tuple[Sampler, Callable]:
    """The sampler and img2img, one of them with the bug."""
    sampler, img2img = SAMPLERS[bug.sampler], minisd.img2img
    namespace: dict[str, object] = {"__name__": "minisd.buggy"}
    if bug.where.endswith(".py"):
        source = source_of("guidance.py", "img2img.py")
        exec(compile(edited(source, bug), "buggy", "exec", dont_inherit=True), namespace)
        img2img = namespace["img2img"]
    else:
        source = source_of("step.py", "more_samplers.py", "samplers.py")
        exec(compile(edited(source, bug), "buggy", "exec", dont_inherit=True), namespace)
        sampler = namespace["SAMPLERS"][bug.sampler]
    return partial(sampler, **bug.options), img2img


def certificate_finds(bug: Bug) -> str:
    """The line that fails first, "" if none does."""
    sampler, img2img = with_bug(bug)
    theory = theory_of(bug.sampler, bug.options)
    with patch.object(minisd, "img2img", img2img):
        certificate = certify(sampler, bug.label, theory, stop_at_failure=True)
    return next((line.check for line in certificate.lines if line.verdict == "fail"), "")


def sum_and_mean(sampler: Sampler, img2img: Callable, whole: bool) -> list[float]:
    """What diffusers freezes: sum and mean of |x| after 10 steps, and after the last 3 of them.

    Its dummy model and dummy latent; the second run is its "full loop with noise". With `whole`, also
    of an img2img run, for bugs that are not in the sampler.
    """

    def predict_eps(x: Tensor, sigma: float) -> Tensor:
        t = sigma_to_t(sigma)
        return x / (sigma**2 + 1) ** 0.5 * t / (t + 1)

    sample = torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4).permute(3, 0, 1, 2) / (4 * 3 * 8 * 8)
    runs = []
    for sigmas in (SCHEDULES["model"](10), SCHEDULES["model"](10)[7:]):
        runs.append(run(sampler, predict_eps, sample * sigmas[0], sigmas)[-1].x_next)
    if whole:
        picture = latent(0.0).float()
        sd = one_picture_sd(Pictures(torch.cat([picture, -picture])), picture)
        blank = Image.new("RGB", (64, 64))
        options = {"steps": 10, "strength": 0.5, "seed": 0}
        runs.append(img2img(sd, "", blank, sampler=sampler, **options).latent)
    return [value.item() for x in runs for value in (x.abs().sum(), x.abs().mean())]


def sum_and_mean_find(bug: Bug) -> bool:
    """Whether these differ by over 1e-3 of themselves from those of the sampler without the bug."""
    whole = bug.where.endswith(".py")
    right = sum_and_mean(partial(SAMPLERS[bug.sampler], **bug.options), minisd.img2img, whole)
    try:
        wrong = sum_and_mean(*with_bug(bug), whole)
    except Exception:
        return True
    return not all(abs(a - b) <= 1e-3 * abs(b) for a, b in zip(wrong, right))


def main() -> int:
    torch.set_num_threads(1)
    begin = time.perf_counter()
    found = frozen = 0
    for bug in BUGS:
        line, by_sum = certificate_finds(bug), sum_and_mean_find(bug)
        found += bool(line)
        frozen += by_sum
        print(f"{bug.sampler:12} {bug.label:55} {line or 'NOT FOUND':50} {'sum' if by_sum else ''}")
    seconds = time.perf_counter() - begin
    share, share_frozen = found / len(BUGS), frozen / len(BUGS)
    print(f"\n{len(BUGS)} bugs in {seconds:.0f} s: the certificate finds {found} ({share:.1%}),")
    print(f"sum and mean of |x|, frozen before the bug came in, {frozen} ({share_frozen:.1%})")
    return 0 if share >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
