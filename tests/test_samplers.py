"""k_lms and ddim against closed forms and other ways to compute the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from minisd.samplers import ddim, k_lms, lms_weights
from minisd.schedule import SCHEDULES

grids = st.builds(
    lambda name, steps, drop: SCHEDULES[name](steps)[drop % steps :],
    st.sampled_from(["model", "karras", "ddim"]),
    st.integers(1, 150),
    st.integers(0, 149),
)
X = torch.from_numpy(np.random.RandomState(0).standard_normal((2, 4, 3, 3)))  # float64


def smooth(x, sigma):
    """Some network, of no meaning but that it answers to both of its inputs."""
    return torch.tanh(x / (sigma**2 + 1) ** 0.5) + 0.1 * torch.cos(x) * sigma


def last(steps):
    *_, step = steps
    return step.x_next


@given(grids)
def test_ddim_is_euler_in_sigma(sigmas):
    x = X * sigmas[0]
    wanted = x
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        wanted = wanted + (sigma_next - sigma) * smooth(wanted, sigma)
    assert last(ddim(smooth, x, sigmas)).sub(wanted).abs().max() <= 1e-12 * sigmas[0]


@settings(deadline=None)
@given(grids, st.sampled_from([0.0, 0.3, 1.0]))
def test_ddim_is_compvis_formula(sigmas, eta):
    """CompVis ldm/models/diffusion/ddim.py p_sample_ddim, in its own scaled variable."""
    x = X * sigmas[0]
    a = [1 / (sigma**2 + 1) for sigma in sigmas]
    y, rng = x * a[0] ** 0.5, torch.Generator().manual_seed(3)
    for a_t, a_prev, sigma in zip(a, a[1:], sigmas):
        e_t = smooth(y / a_t**0.5, sigma)
        sigma_t = eta * ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)) ** 0.5
        pred_x0 = (y - (1 - a_t) ** 0.5 * e_t) / a_t**0.5
        noise = torch.randn(y.shape, generator=rng).double() if eta else 0
        y = a_prev**0.5 * pred_x0 + max(0, 1 - a_prev - sigma_t**2) ** 0.5 * e_t + sigma_t * noise
    got = last(ddim(smooth, x, sigmas, eta=eta, generator=torch.Generator().manual_seed(3)))
    # float64: 1 - a loses digits near a = 1 in the scaled variable, not in sigma
    assert (got * a[-1] ** 0.5 - y).abs().max() <= 1e-12 * max(1, sigmas[0])


@given(grids, st.integers(1, 4), st.integers(0, 149))
def test_lms_weights(sigmas, order, i):
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
        largest = max(abs(w) for w in weights)  # rounding is of the largest weight's size
        assert weight == pytest.approx(exact, abs=1e-12 * max(largest, h))


def test_lms_weights_published():
    """k-diffusion's, for Karras's 10 steps entered at strength 0.7 and the model's at 0.4."""
    sigmas = SCHEDULES["karras"](10)[3:]
    assert lms_weights(sigmas, 1, 2) == pytest.approx([-1.081190, 0.245845], abs=2e-6)
    wanted = [-0.358180, 0.145042, -0.035594, 0.003213]
    assert lms_weights(sigmas, 3, 4) == pytest.approx(wanted, abs=2e-6)
    sigmas = SCHEDULES["model"](10)[6:]
    wanted = [-0.756813, 0.577842, -0.160520]
    assert lms_weights(sigmas, 2, 3) == pytest.approx(wanted, abs=2e-6)


def gaussian_eps(mean, std):
    def predict_eps(x, sigma):
        return sigma * (x - mean) / (std**2 + sigma**2)

    return predict_eps


def gaussian_exact(x, sigma, sigma_next, mean, std):
    return mean + (x - mean) * ((std**2 + sigma_next**2) / (std**2 + sigma**2)) ** 0.5


@pytest.mark.parametrize("grid", ["model", "karras"])
@pytest.mark.parametrize("start", [0, 0.3])
def test_lms_is_exact_on_gaussian_data(grid, start):
    """On data N(0.3, 0.5) the whole way has a closed form. Order 4 comes within 1e-4 of it in 400
    steps, from the start or from the middle (its first steps are of lower order); Euler, at 2e-3 at
    best, shows that the tolerance means something."""
    sigmas = SCHEDULES[grid](400)[int(400 * start) :]
    x = 0.3 + X * sigmas[0]
    predict_eps = gaussian_eps(0.3, 0.5)
    exact = gaussian_exact(x, sigmas[0], 0.0, 0.3, 0.5)
    error = (last(k_lms(predict_eps, x, sigmas)) - exact).abs().max()
    euler = (last(ddim(predict_eps, x, sigmas)) - exact).abs().max()
    assert error <= 1e-4
    assert euler >= 2e-3


def test_linear_slopes_are_integrated_exactly():
    """A slope that is a cubic in sigma alone is LMS's own case: exact from the fourth step on."""
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
def test_nothing_is_changed_or_kept(sampler):
    sigmas, x = SCHEDULES["model"](12), X * 14
    first = [step.x_next.clone() for step in sampler(smooth, x, sigmas)]
    half = sampler(smooth, x, sigmas)
    next(half)  # a run that is broken off
    second = [step.x_next for step in sampler(smooth, x, sigmas)]
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(x, X * 14) and sigmas == SCHEDULES["model"](12)


def test_step_x0():
    step = next(k_lms(smooth, X * 14, SCHEDULES["model"](5)))
    assert torch.equal(step.x0, step.x - step.sigma * step.eps)


def test_ddim_needs_a_generator_to_draw():
    with pytest.raises(ValueError, match="generator"):
        next(ddim(smooth, X, [1.0, 0.0], eta=0.5))
    with pytest.raises(ValueError, match="eta"):
        next(ddim(smooth, X, [1.0, 0.0], eta=-1))
    with pytest.raises(ValueError, match="orders 1 to 4"):
        next(k_lms(smooth, X, [1.0, 0.0], order=5))
