"""The laboratory's exact models against scipy, closed forms, and distinct pictures."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.stats import norm

from minisd.img2img import img2img
from minisd.lab.exact import Mixture, Pictures, as_sd, as_unet
from minisd.lab.subject import GAUSSIAN, MIXTURE, POINT, latent
from minisd.samplers import k_heun
from minisd.schedule import karras, sigma_to_t


def test_the_mean_of_the_posterior():
    """E[x0 | x] by quadrature: the mean of x0, weighted by p(x0) N(x; x0, sigma^2)."""
    x, sigma = 0.4, 0.6

    def weight(x0):
        data = sum(w * norm.pdf(x0, mean, std) for w, mean, std in MIXTURE.components)
        return data * norm.pdf(x, x0, sigma)

    mean = quad(lambda x0: x0 * weight(x0), -5, 5)[0] / quad(weight, -5, 5)[0]
    eps = MIXTURE(torch.tensor([x], dtype=torch.float64), sigma)
    assert x - sigma * eps.item() == pytest.approx(mean, rel=1e-7)  # the accuracy of quad


@pytest.mark.parametrize("sigma_end", [1.0, 0.0292])
def test_flow_is_the_solution_of_the_ode(sigma_end):
    x = latent(14.6, size=2)
    solved = solve_ivp(
        lambda sigma, y: MIXTURE(torch.tensor(y), sigma).numpy(),
        (14.6, sigma_end),
        x.flatten().numpy(),
        method="DOP853",
        rtol=1e-12,
        atol=1e-12,
    )
    flow = MIXTURE.flow(x, 14.6, sigma_end).flatten().numpy()
    assert np.abs(solved.y[:, -1] - flow).max() < 1e-10  # 100 steps of tolerance 1e-12


def test_flow_of_a_gaussian_is_linear():
    x = latent(14.6)
    spread = ((0.5**2 + 0.1**2) / (0.5**2 + 14.6**2)) ** 0.5
    torch.testing.assert_close(
        GAUSSIAN.flow(x, 14.6, 0.1), 0.3 + (x - 0.3) * spread, rtol=0, atol=1e-12
    )


def test_eps_of_a_single_point_is_the_noise():
    noise = latent(0.0)
    torch.testing.assert_close(POINT(0.7 + 3.0 * noise, 3.0), noise, rtol=0, atol=1e-12)


def test_runs_end_in_the_nearest_picture():
    pictures = torch.stack([torch.full((4, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    drawing = pictures[2:] * 0.8 + 0.2 * latent(0.0).float()
    sigmas = karras(30)[12:]
    x = drawing + sigmas[0] * latent(0.0).float()
    *_, last = k_heun(Pictures(pictures), x, sigmas)
    torch.testing.assert_close(last.x_next[0], pictures[2], rtol=0, atol=1e-4)


def test_one_picture_equals_a_mixture_of_one_point():
    x = latent(2.0)
    point = Mixture(((1.0, 0.25, 0.0),))
    pictures = Pictures(torch.full((1, 4, 8, 8), 0.25, dtype=torch.float64))
    torch.testing.assert_close(pictures(x, 2.0), point(x, 2.0))


def test_an_exact_model_with_the_arguments_of_a_unet():
    x, sigma = latent(3.0), 3.0
    t = torch.tensor([sigma_to_t(sigma)], dtype=torch.float64)
    eps = as_unet(MIXTURE)(x / (sigma**2 + 1) ** 0.5, t, torch.zeros(1, 77, 1))
    torch.testing.assert_close(eps, MIXTURE(x, sigma), rtol=0, atol=1e-9)


def test_img2img_draws_with_an_exact_model():
    """The network knows one picture only, so the result is that picture."""
    picture, drawing = latent(0.0).float(), latent(0.0, mean=0.5).float()
    result = img2img(as_sd(Pictures(picture)), "", drawing, strength=0.6, steps=10, seed=1)
    torch.testing.assert_close(result.latent, picture, rtol=0, atol=2e-3)
    assert result.image.size == (64, 64)
