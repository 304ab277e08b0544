"""k_lms and ddim against closed forms and independent formulas."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from minisd.samplers import FACTS, SAMPLERS, TEN, ddim, k_lms, lms_weights
from minisd.schedule import SCHEDULES

late_schedules = st.builds(
    lambda name, steps, start: SCHEDULES[name](steps)[start % steps :],
    st.sampled_from(["model", "karras", "ddim"]),
    st.integers(1, 150),
    st.integers(0, 149),
)
X = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 4, 3, 3)))  # float64


def smooth(x, sigma):
    """A stand-in network that depends on both of its inputs."""
    return torch.tanh(x / (sigma**2 + 1) ** 0.5) + 0.1 * torch.cos(x) * sigma


def last(steps):
    *_, step = steps
    return step.x_next


@given(late_schedules)
def test_ddim_is_euler_in_sigma(sigmas):
    x = X * sigmas[0]
    expected = x
    for sigma, sigma_next in pairwise(sigmas):
        expected = expected + (sigma_next - sigma) * smooth(expected, sigma)
    assert last(ddim(smooth, x, sigmas)).sub(expected).abs().max() <= 1e-12 * sigmas[0]


@settings(deadline=None)
@given(late_schedules, st.sampled_from([0.0, 0.3, 1.0]))
def test_ddim_equals_the_formula_of_compvis(sigmas, eta):
    """CompVis: ldm/models/diffusion/ddim.py, p_sample_ddim, in its scaled variable."""
    x = X * sigmas[0]
    abar = [1 / (sigma**2 + 1) for sigma in sigmas]
    y, rng = x * abar[0] ** 0.5, torch.Generator().manual_seed(3)
    for a_t, a_prev, sigma in zip(abar, abar[1:], sigmas):
        e_t = smooth(y / a_t**0.5, sigma)
        sigma_t = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)) ** 0.5
        pred_x0 = (y - (1 - a_t) ** 0.5 * e_t) / a_t**0.5
        noise = torch.randn(y.shape, generator=rng).double() if eta else 0
        y = a_prev**0.5 * pred_x0 + max(0, 1 - a_prev - sigma_t**2) ** 0.5 * e_t + sigma_t * noise
    result = last(ddim(smooth, x, sigmas, eta=eta, generator=torch.Generator().manual_seed(3)))
    # float64: near abar = 1 the scaled variable loses digits in 1 - abar; sigma does not.
    assert (result * abar[-1] ** 0.5 - y).abs().max() <= 1e-12 * max(1, sigmas[0])


@given(late_schedules, st.integers(1, 4), st.integers(0, 149))
def test_lms_weights_integrate_lagrange_polynomials(sigmas, order, i):
    i %= len(sigmas) - 1
    order = min(order, i + 1)
    weights = lms_weights(sigmas, i, order)
    h = sigmas[i] - sigmas[i + 1]
    assert sum(weights) == pytest.approx(-h, rel=1e-12)
    for j, weight in enumerate(weights):

        def lagrange(sigma, j=j):
            return np.prod(
                [
                    (sigma - sigmas[i - k]) / (sigmas[i - j] - sigmas[i - k])
                    for k in range(order)
                    if k != j
                ]
            )

        exact, _ = quad(lagrange, sigmas[i], sigmas[i + 1], epsabs=0, epsrel=1e-13)
        largest = max(abs(w) for w in weights)  # its size decides the rounding
        assert weight == pytest.approx(exact, abs=1e-12 * max(largest, h))


def test_published_lms_weights():
    """k-diffusion's, for 10 steps: Karras's schedule at strength 0.7, the model's at 0.4."""
    sigmas = SCHEDULES["karras"](10)[3:]
    assert lms_weights(sigmas, 1, 2) == pytest.approx([-1.081190, 0.245845], abs=2e-6)
    expected = [-0.358180, 0.145042, -0.035594, 0.003213]
    assert lms_weights(sigmas, 3, 4) == pytest.approx(expected, abs=2e-6)
    sigmas = SCHEDULES["model"](10)[6:]
    expected = [-0.756813, 0.577842, -0.160520]
    assert lms_weights(sigmas, 2, 3) == pytest.approx(expected, abs=2e-6)


def gaussian_eps(mean, std):
    def predict_eps(x, sigma):
        return sigma * (x - mean) / (std**2 + sigma**2)

    return predict_eps


def gaussian_exact(x, sigma, sigma_next, mean, std):
    return mean + (x - mean) * ((std**2 + sigma_next**2) / (std**2 + sigma**2)) ** 0.5


@pytest.mark.parametrize("schedule", ["model", "karras"])
@pytest.mark.parametrize("start", [0, 0.3])
def test_lms_is_exact_on_gaussian_data(schedule, start):
    """On data N(0.3, 0.5) the solution has a closed form. Order 4 comes within 1e-4 of it in 400
    steps, from the start or from the middle, where its first steps have lower order. Euler's error
    is at least 2e-3, so the tolerance is a real test."""
    sigmas = SCHEDULES[schedule](400)[int(400 * start) :]
    x = 0.3 + X * sigmas[0]
    predict_eps = gaussian_eps(0.3, 0.5)
    exact = gaussian_exact(x, sigmas[0], 0.0, 0.3, 0.5)
    error = (last(k_lms(predict_eps, x, sigmas)) - exact).abs().max()
    euler = (last(ddim(predict_eps, x, sigmas)) - exact).abs().max()
    assert error <= 1e-4
    assert euler >= 2e-3


def test_cubic_slopes_are_integrated_exactly():
    """A slope that is a cubic in sigma alone is integrated exactly from the fourth step on."""
    sigmas = SCHEDULES["karras"](12)

    def cubic(x, sigma):
        return torch.full_like(x, 1 - 2 * sigma + 0.5 * sigma**2 - 0.03 * sigma**3)

    def integral(s):
        return s - s**2 + 0.5 * s**3 / 3 - 0.03 * s**4 / 4

    for step in k_lms(cubic, X, sigmas):
        if step.i >= 3:
            moved = integral(step.sigma_next) - integral(step.sigma)
            assert (step.x_next - step.x - moved).abs().max() < 1e-10  # of terms up to 300


@pytest.mark.parametrize("sampler", [k_lms, ddim])
def test_samplers_change_no_argument_and_keep_no_state(sampler):
    sigmas, x = SCHEDULES["model"](12), X * 14
    first = [step.x_next.clone() for step in sampler(smooth, x, sigmas)]
    abandoned = sampler(smooth, x, sigmas)
    next(abandoned)
    second = [step.x_next for step in sampler(smooth, x, sigmas)]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(x, X * 14) and sigmas == SCHEDULES["model"](12)


def test_x0_of_a_step():
    step = next(k_lms(smooth, X * 14, SCHEDULES["model"](5)))
    assert torch.equal(step.x0, step.x - step.sigma * step.eps)


def test_wrong_arguments_raise_at_the_first_step():
    with pytest.raises(ValueError, match="generator"):
        next(ddim(smooth, X, [1.0, 0.0], eta=0.5))
    with pytest.raises(ValueError, match="eta"):
        next(ddim(smooth, X, [1.0, 0.0], eta=-1))
    with pytest.raises(ValueError, match="must be 1, 2, 3 or 4"):
        next(k_lms(smooth, X, [1.0, 0.0], order=5))


@pytest.mark.parametrize("name", [s.__name__ for s in TEN if FACTS[s.__name__].normals])
def test_a_batch_draws_from_each_pictures_own_generator(name):
    sigmas, x = SCHEDULES["model"](6), X.repeat(1, 1, 2, 2) * 14
    batch = last(SAMPLERS[name](smooth, x, sigmas, eta=1.0, generator=generators(5, 6)))
    for picture, start, generator in zip(batch, x, generators(5, 6), strict=True):
        single = last(SAMPLERS[name](smooth, start[None], sigmas, eta=1.0, generator=generator))
        assert torch.equal(picture, single[0])


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]
