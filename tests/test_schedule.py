"""Noise levels against published numbers, and the rule by which img2img starts in a schedule."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisd import SAMPLERS
from minisd.schedule import (
    SCHEDULES,
    SIGMAS,
    default_schedule,
    sigma_to_t,
    start_index,
    t_to_sigma,
)

# k-diffusion's own schedules at 10 steps, computed by its code, 6 decimals.
KARRAS_10 = [14.614641, 9.102928, 5.478392, 3.168603, 1.749417, 0.914072, 0.446918, 0.201398]
KARRAS_10 += [0.081910, 0.029167, 0.0]
MODEL_10 = [14.614641, 7.839883, 4.609174, 2.918307, 1.950161, 1.344928, 0.932358, 0.624977]
MODEL_10 += [0.368658, 0.029167, 0.0]


def test_table():
    assert SIGMAS[0] == pytest.approx(0.0291675, abs=5e-7)  # the published value is float32's
    assert SIGMAS[999] == pytest.approx(14.614642, abs=2e-6)
    # Lin et al. 2023, table 1: SD's last level keeps sqrt(abar) = 0.068265 of the picture.
    assert (SIGMAS[999] ** 2 + 1) ** -0.5 == pytest.approx(0.068265, abs=5e-7)


@pytest.mark.parametrize(("name", "expected"), [("karras", KARRAS_10), ("model", MODEL_10)])
def test_schedules_of_k_diffusion(name, expected):
    assert SCHEDULES[name](10) == pytest.approx(expected, abs=2e-6)  # float32 there


def test_karras_timesteps():
    expected = [999, 916.284, 815.045, 687.153, 523.198, 327.146, 145.938, 40.856, 6.732, 0]
    assert [sigma_to_t(s) for s in KARRAS_10[:-1]] == pytest.approx(expected, abs=2e-3)


def test_ddim_schedule():
    assert SCHEDULES["ddim"](10) == [SIGMAS[t] for t in range(901, 0, -100)] + [SIGMAS[0]]
    with pytest.raises(ValueError, match="1 to 999 steps"):
        SCHEDULES["ddim"](1000)


@given(st.sampled_from(list(SCHEDULES)), st.integers(1, 999))
def test_schedules_descend(name, steps):
    sigmas = SCHEDULES[name](steps)
    assert len(sigmas) == steps + 1
    assert all(type(s) is float for s in sigmas)
    assert all(a > b for a, b in zip(sigmas, sigmas[1:]))
    assert sigmas[-1] >= 0 and sigmas[0] <= SIGMAS[999] * (1 + 1e-12)


@given(st.floats(0, 999))
def test_t_and_sigma_are_inverse(t):
    assert sigma_to_t(t_to_sigma(t)) == pytest.approx(t, abs=1e-9)


@pytest.mark.parametrize(
    ("steps", "strength", "steps_run"),
    [(10, 0.7, 7), (10, 0.4, 4), (50, 0.4, 20), (30, 0.7, 21), (29, 0.7, 20)]  # the document's
    + [(50, 0.75, 37), (50, 0.8, 40), (20, 0.1, 2), (10, 0.05, 0), (10, 0, 0), (10, 1, 10)]
    + [(50, 0.58, 29), (90, 0.7, 63), (100, 0.29, 29), (100, 0.57, 57), (100, 0.58, 58)],  # traps
)
def test_steps_run(steps, strength, steps_run):
    assert start_index(steps, strength) == steps - steps_run


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_steps_run_is_the_exact_floor(steps, thousandths):
    exact = math.floor(steps * Fraction(thousandths, 1000))
    assert steps - start_index(steps, thousandths / 1000) == exact


def test_default_schedule():
    for sampler in SAMPLERS:
        assert default_schedule(sampler) == ("ddim" if sampler == "ddim" else "model")
    assert default_schedule(SAMPLERS["ddim"]) == "model"  # a function has no name


@pytest.mark.parametrize("strength", [-0.01, 1.01, math.nan, math.inf])
def test_strength_out_of_range(strength):
    with pytest.raises(ValueError, match="between 0"):
        start_index(10, strength)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "10", None])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match="whole number"):
        start_index(steps, 0.5)
    for schedule in SCHEDULES.values():
        with pytest.raises(ValueError, match="whole number"):
            schedule(steps)
