"""Scheduler classes of diffusers as samplers of minisd.

A scheduler chooses its noise levels from a table, that of the training. Here it gets a table that
holds exactly the levels of the run. So its own code makes its lists and takes its steps, on any
schedule. It is driven as diffusers' pipelines do: set_timesteps, scale_model_input, step.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import Parameter, Signature
from math import exp, log
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from minisd.samplers import PredictEps, Rng, Sampler, Step, fresh_noise

# What the adapter decides: the table of levels, and how all of them are taken.
TABLE = ("num_train_timesteps", "trained_betas", "beta_start", "beta_end", "beta_schedule")
TAKE_ALL = {
    "timestep_spacing": "trailing",
    "steps_offset": 0,
    "clip_sample": False,  # SD 1.x's latents are not within -1 to 1
    "set_alpha_to_one": True,
    "skip_prk_steps": True,  # as in SD 1.x's own configuration
}
OF_STEP = ("self", "model_output", "timestep", "sample", "generator", "return_dict")


def is_scheduler(kind: Callable[..., Any]) -> bool:
    """Whether it is a class with the methods of diffusers' schedulers."""
    names = ("set_timesteps", "step", "scale_model_input")
    return inspect.isclass(kind) and all(hasattr(kind, name) for name in names)


def adapted_scheduler(kind: Callable[..., Any], double: bool = False) -> Sampler:
    """A scheduler class as a sampler. Its options are those of the class and of its `step`.

    One option more is `skipped`: how many levels above sigmas[0] the scheduler's own schedule has.
    diffusers' img2img starts in the middle of a schedule; with skipped 0 the run is a whole one.
    With double, its arithmetic is in float64, which it otherwise never is.
    """
    made_with = inspect.signature(kind).parameters
    of_step = inspect.signature(kind.step).parameters  # pyright: ignore
    chosen = {name: value for name, value in TAKE_ALL.items() if name in made_with}
    options = [Parameter("skipped", Parameter.KEYWORD_ONLY, default=0)]
    for names, left_out in ((made_with, (*TABLE, *chosen)), (of_step, OF_STEP)):
        options += [
            p.replace(kind=Parameter.KEYWORD_ONLY)
            for name, p in names.items()
            if name not in left_out
        ]
    module = importlib.import_module(kind.__module__)
    draws = hasattr(module, "randn_tensor") or hasattr(module, "BrownianTreeNoiseSampler")

    def sampler(
        predict_eps: PredictEps,
        x: Tensor,
        sigmas: list[float],
        generator: Rng = None,
        skipped: int = 0,
        **settings: Any,
    ) -> Iterator[Step]:
        if len(sigmas) < 2:  # strength 0
            return
        step_options = {k: v for k, v in settings.items() if k in of_step}
        class_options = {k: v for k, v in settings.items() if k not in of_step}
        levels = with_levels_above(sigmas, skipped)
        table = [level for level in levels if level > 0]
        if kind.__name__ == "DPMSolverSinglestepScheduler":  # it never takes the lowest level
            table.append(table[-1] / 2)
        noise = partial(fresh_noise, generator=generator)
        with replaced(module, noise, double):
            scheduler = kind(
                **chosen | class_options,
                num_train_timesteps=len(table),
                trained_betas=betas_of(table),
            )
            scheduler.set_timesteps(len([level for level in levels if level > 0]))
            expected = expected_levels(scheduler, table, 1e-10 if double else 1e-6)
        starts = [last_index(expected, level) for level in sigmas[:-1]]
        end = last_index(expected, sigmas[-1]) if sigmas[-1] > 0 else len(expected)
        if skipped and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(starts[0])

        scaled = torch.ones(1, dtype=torch.float64)
        with replaced(module, noise, double):
            scales = float(scheduler.scale_model_input(scaled, scheduler.timesteps[starts[0]]))
        of_variance_1 = scales == 1  # whether its own state is x / sqrt(1 + sigma^2)
        state = x / (1 + sigmas[0] ** 2) ** 0.5 if of_variance_1 else x
        x_begin, eps_begin, i = x, x, -1
        for k in range(starts[0], end):
            sigma, t = expected[k], scheduler.timesteps[k]
            with replaced(module, noise, double):
                x_in = scheduler.scale_model_input(state, t)
            x_called = network_x(x_in, state, sigma, of_variance_1) if k > starts[0] else x
            if k in starts:
                if k > starts[0]:
                    yield Step(i, sigmas[i], sigmas[i + 1], x_begin, eps_begin, x_called)
                i, x_begin = starts.index(k), x_called
            eps = predict_eps(x_called, sigma)
            eps_begin = eps if k in starts else eps_begin
            draw = partial(noise, sigma=sigmas[i], sigma_next=sigmas[i + 1])
            with replaced(module, draw, double):
                state = scheduler.step(eps.clone(), t, state, **step_options).prev_sample
        x_end = state * (1 + sigmas[-1] ** 2) ** 0.5 if of_variance_1 else state
        yield Step(i, sigmas[i], sigmas[i + 1], x_begin, eps_begin, x_end)

    names = ("predict_eps", "x", "sigmas", *(("generator",) if draws else ()))
    parameters = [
        Parameter(
            name,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=None if name == "generator" else Parameter.empty,
        )
        for name in names
    ]
    unique = {p.name: p for p in options}
    sampler.__signature__ = Signature(parameters + list(unique.values()))  # pyright: ignore
    sampler.__name__ = kind.__name__
    return sampler


def with_levels_above(sigmas: list[float], count: int) -> list[float]:
    """The levels, with `count` more above the first, in the ratio of the first step."""
    ratio = sigmas[0] / sigmas[1] if sigmas[1] > 0 else 2.0
    return [sigmas[0] * ratio**k for k in range(count, 0, -1)] + sigmas


def betas_of(levels: list[float]) -> list[float]:
    """The betas of a training whose timesteps 0, 1, ... have these levels, the lowest first."""
    abars = [1.0, *(1 / (1 + level**2) for level in reversed(levels))]
    return [1 - abar / previous for previous, abar in zip(abars, abars[1:])]


def expected_levels(scheduler: Any, table: list[float], rounding: float) -> list[float]:
    """The level that the network expects at each of the scheduler's timesteps.

    Between two timesteps of the table log(sigma) is linear, as for the network. Levels that differ
    from the table's or from the scheduler's own by `rounding` only, relative, are made equal.
    """
    logs = [log(level) for level in reversed(table)]
    own = getattr(scheduler, "sigmas_interpol", torch.zeros(1)).double().numpy()
    levels = []
    for t in scheduler.timesteps.tolist():
        level = exp(np.interp(t, np.arange(len(logs)), logs))
        for known in (np.array(table), own):
            nearest = float(known[np.abs(known - level).argmin()])
            if abs(nearest / level - 1) < rounding:
                level = nearest
                break
        levels.append(level)
    return levels


def last_index(levels: list[float], level: float) -> int:
    """Where a step from this level starts. Methods with two calls have some levels twice."""
    return max(i for i, other in enumerate(levels) if other == level)


def network_x(x_in: Tensor, state: Tensor, sigma: float, of_variance_1: bool) -> Tensor:
    """The network's input in sigma space: the state itself, if its scaling is the right one."""
    x = x_in * (1 + sigma**2) ** 0.5
    if of_variance_1 or not torch.allclose(x, state, rtol=1e-6, atol=1e-6):
        return x
    return state


@contextmanager
def replaced(module: Any, noise: Callable[..., Tensor], double: bool) -> Iterator[None]:
    """The scheduler's module draws minisd's noise; with double, its float32 is float64."""

    def randn_tensor(shape: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return noise(torch.empty(shape, dtype=dtype))

    def brownian(x: Tensor, *_: Any, **__: Any) -> Callable[..., Tensor]:
        return lambda sigma, sigma_next: noise(x)

    with ExitStack() as stack:
        for name, source in (
            ("randn_tensor", randn_tensor),
            ("BrownianTreeNoiseSampler", brownian),
        ):
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, source))
        if double:
            for name in ("torch", "np"):
                if hasattr(module, name):
                    stack.enter_context(patch.object(module, name, InDouble(getattr(module, name))))
        yield


class InDouble:
    """A library whose float32 is float64."""

    def __init__(self, library: Any):
        self.library = library

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, "float64" if name == "float32" else name)
