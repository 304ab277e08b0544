"""Solutions of the exercises, by name. Try first: each lesson has hints.

Tests put these into the notebooks in place of the stubs, and every check must then say "right".
"""

import math

import torch

from minisd.schedule import SIGMAS

# ---- 1, the line ---------------------------------------------------------------------------------


def insert(x0, noise, sigma):
    return x0 + sigma * noise


def measure(x, x0, noise):
    matrix = torch.stack([x0.flatten(), noise.flatten()], dim=1)
    a, b = torch.linalg.lstsq(matrix, x.flatten()[:, None]).solution.flatten().tolist()
    return a, b


suspect, places = "C", 1

# ---- 2, one look ---------------------------------------------------------------------------------


def clean(x, eps, sigma):
    return x - sigma * eps


def best_guess(x, sigma, mean, std):
    share = std**2 / (std**2 + sigma**2)
    return share * x + (1 - share) * mean


faded_by, gain = "A", 0.53

# ---- 3, the loop ---------------------------------------------------------------------------------


def euler(predict_eps, x, sigmas):
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        x = x + (sigma_next - sigma) * predict_eps(x, sigma)
    return x


def ddim_step(y, eps, abar, abar_next):
    y0 = (y - (1 - abar) ** 0.5 * eps) / abar**0.5
    return abar_next**0.5 * y0 + (1 - abar_next) ** 0.5 * eps


careless, times = "C", 3.08

# ---- 4, strength ---------------------------------------------------------------------------------


def first_step(steps, strength):
    return steps - math.floor(round(steps * strength, 9))


def steps_run(program, steps, strength):
    run = math.floor(round(steps * strength, 9))
    if program == "a1111":
        return min(run + 1, steps)
    if program == "comfyui":
        return steps
    return run


miscounting, run_of_30 = "B", 20

# ---- 5, where the steps go -----------------------------------------------------------------------


def karras_levels(steps, rho):
    high, low = SIGMAS[-1] ** (1 / rho), SIGMAS[0] ** (1 / rho)
    roots = [high + i / (steps - 1) * (low - high) for i in range(steps)]
    return [*(root**rho for root in roots), 0.0]


def better(steps):
    high, low = math.atan(SIGMAS[-1]), math.atan(SIGMAS[0])
    angles = [high + i / (steps - 1) * (low - high) for i in range(steps)]
    return [*map(math.tan, angles), 0.0]


early, left_over = "C", 0.0413

# ---- 6, longer memory ----------------------------------------------------------------------------


def two_weights(sigma_last, sigma, sigma_next):
    h, h_last = sigma_next - sigma, sigma - sigma_last
    return h * (1 + h / (2 * h_last)), -(h**2) / (2 * h_last)


def two_m(predict_eps, x, sigmas):
    x0_last, h_last = None, None
    for sigma, sigma_next in zip(sigmas, sigmas[1:]):
        x0 = x - sigma * predict_eps(x, sigma)
        if sigma_next == 0:
            return x0
        h = math.log(sigma / sigma_next)
        d = x0 if x0_last is None else x0 + h / (2 * h_last) * (x0 - x0_last)
        x = sigma_next / sigma * x + (1 - math.exp(-h)) * d
        x0_last, h_last = x0, h
    return x


overshooting, way = "B", 3.30

# ---- 7, chance -----------------------------------------------------------------------------------


def ancestral(sigma, sigma_next):
    up = sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5
    return (sigma_next**2 - up**2) ** 0.5, up


def merge(noise_1, noise_2, a, b, c):
    return ((a - b) ** 0.5 * noise_1 + (b - c) ** 0.5 * noise_2) / (a - c) ** 0.5


repeating, excess = "B", 1.41

# ---- 8, words pull -------------------------------------------------------------------------------


def guide(eps_uncond, eps_cond, scale):
    return eps_uncond + scale * (eps_cond - eps_uncond)


def rescale(eps_uncond, eps_cond, scale, phi):
    eps = eps_uncond + scale * (eps_cond - eps_uncond)
    ratio = eps_cond.std((1, 2, 3), keepdim=True) / eps.std((1, 2, 3), keepdim=True)
    return phi * ratio * eps + (1 - phi) * eps


burnt, weights_sum = "A", 7

# ---- 9, what a latent is -------------------------------------------------------------------------


def scale_factor(latents):
    return float(1 / torch.cat([z.flatten() for z in latents]).std())


def rgb_map(latents, colours):
    columns = torch.cat([latents, torch.ones(len(latents), 1).to(latents)], dim=1)
    solution = torch.linalg.lstsq(columns, colours).solution
    return solution[:4], solution[4]


pale, factor = "C", 0.182

# ---- 10, words, attention, surgery ---------------------------------------------------------------


def shares(q, k, heads):
    q, k = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k))
    products = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return products.softmax(-1).mean(1)


def emphasize(states, empty, places, weight):
    result = states.clone()
    result[:, places] = empty[:, places] + weight * (states - empty)[:, places]
    return result


many_headed, times_as_many = "A", 2
