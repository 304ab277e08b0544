# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 6. Longer memory
#
# **Can a sampler learn from its own earlier looks?**
#
# Euler's method forgets. At each step it asks the network once, follows the answer, and throws it
# away. A look is expensive, and memory is cheap. In this lesson you write two methods that
# remember, measure what they gain, and what they can lose.

# %%
import math

import torch

import minisd
from minisd.lab.quality import noise_gain
from minisd.lab.subject import MIXTURE
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.observe import Ledger
from minisd.samplers import SAMPLERS, lms_weights
from minisd.schedule import karras, model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## Same looks, smaller error
#
# Four methods run on the exact model of lesson 3. `k_euler` has no memory. `k_dpmpp_2` remembers
# one look, `k_lms` three. `k_heun` has no memory, but looks twice in each step. So the curves are
# drawn over the number of *looks*.

# %%
rng = torch.Generator().manual_seed(1)
x = 14.6146 * torch.randn(1, 4, 16, 16, generator=rng).double()
exact = MIXTURE.flow(x, karras(8)[0], karras(8)[-2])
curves = {}
for name in ("k_euler", "k_heun", "k_dpmpp_2", "k_lms"):
    points = []
    for looks in (16, 32, 64, 128):
        steps = looks // 2 if name == "k_heun" else looks
        *_, last = SAMPLERS[name](MIXTURE, x, karras(steps + 1)[:-1])
        points.append((looks, float((last.x_next - exact).square().mean() ** 0.5)))
    curves[name] = points
    print(f"{name:10} error at 32 looks: {points[1][1]:.5f}")
at_32 = {name: points[1][1] for name, points in curves.items()}
assert at_32["k_lms"] < at_32["k_dpmpp_2"] < at_32["k_heun"] < at_32["k_euler"]
Plot(
    "Error by looks", curves, "looks", "error", log_x=True, log_y=True, slopes=(1, 2)
)  # fmt: skip

# %% [markdown]
# With 32 looks, each method with memory is better than both methods without it. So the answer is
# yes. How does it work?
#
# ## A line through two looks
#
# Euler's method takes the slope at the start of a step for the slope of the whole step. With the
# slope of the step before, we can draw a line through the two, and follow the line.
# `x_next = x + w_new * eps + w_old * eps_last`, where the weights are the areas below the line.

# %% [markdown]
# ## Exercise 1: two weights
#
# The last step began at `sigma_last`. This one begins at `sigma` and ends at `sigma_next`. Beware:
# the steps have different lengths.


# %% tags=["exercise"]
def two_weights(sigma_last, sigma, sigma_next):
    """(w_new, w_old), the weights of the slopes at sigma and at sigma_last."""
    ...  # your code


# %%
check("two_weights", two_weights)

# %% [markdown]
# <details><summary>Hint</summary>
#
# With `h = sigma_next - sigma` and `h_last = sigma - sigma_last`, the line's value in the middle of
# the step is `eps + h / (2 * h_last) * (eps - eps_last)`. Multiply that by h, and collect what
# stands before eps and before eps_last.
# </details>
#
# For a step from 2 to 1 after one from 3 to 2, the weights are -1.5 and 0.5. Their sum is always
# the length of the step, -1.

# %%
w_new, w_old = lms_weights([3.0, 2.0, 1.0], 1, 2)
print(w_new, w_old)
assert abs(w_new + 1.5) < 1e-12 and abs(w_old - 0.5) < 1e-12

# %% [markdown]
# ## Exercise 2: DPM-Solver++(2M)
#
# `k_dpmpp_2` is known as DPM++ 2M, and is among the most used samplers. It draws its line not
# through the slopes but through the clean latents x0, and measures length in `lambda =
# -log(sigma)`. For a step of length `h = log(sigma / sigma_next)` after one of length `h_last`:
#
# * `x0 = x - sigma * eps`
# * `d = x0 + h / (2 * h_last) * (x0 - x0_last)`. In the first step `d = x0`.
# * `x_next = sigma_next / sigma * x + (1 - exp(-h)) * d`. In a step to sigma 0, `x_next = x0`.
#
# Write the loop.


# %% tags=["exercise"]
def two_m(predict_eps, x, sigmas):
    """x at the last of the levels, from x at the first one."""
    ...  # your code


# %%
check("two_m", two_m)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start from your loop of lesson 3. Keep `x0_last, h_last = None, None` before the loop, and set
# both at the end of each step. `log(sigma / 0)` fails, so treat the step to 0 first.
# </details>
#
# ## What memory can lose
#
# A line that is followed too far leads astray. The last steps of the schedule `model` have very
# different lengths: from 0.369 to 0.029 the level falls to less than a tenth. `k_lms` draws a cubic
# through four slopes there. Any error of the network is then multiplied. The laboratory measures by
# how much: the **noise gain** is the sum of the absolute weights, divided by the first level. 1 is
# harmless.

# %%
sigmas = model(10)
assert round(sigmas[-3], 3) == 0.369 and round(sigmas[-2], 3) == 0.029
for name in ("k_euler", "k_dpmpp_2", "k_lms", "k_lms_guarded"):
    gain = noise_gain(minisd.SAMPLERS[name], model(50)[45:])
    print(f"{name:14} noise gain at 50 steps, strength 0.1: {gain:.2f}")
assert round(noise_gain(SAMPLERS["k_lms"], model(50)[45:]), 1) == 6.5
assert noise_gain(minisd.SAMPLERS["k_lms_guarded"], model(50)[45:]) < 1.1

# %% [markdown]
# `k_lms` multiplies errors by 6.5. Users of several programs saw this as noise at the end of LMS
# runs, and asked why. `k_lms_guarded` forgets older slopes where they would harm.
#
# ## Break it
#
# Three programs with the same levels, and the ledger sees no mistake in any of them. So the mistake
# is in the sampler. Here is a way to see it: let the network answer 1, whatever it is asked. Then
# the weights of all steps add up, and the sum must be the way from the first level to the last.

# %%
levels = model(10)[3:]
cells = []
for letter, program in programs.MEMORY.items():
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    zeros = torch.zeros(1, 4, 1, 1)
    steps = list(program.sampler(lambda x, sigma: torch.ones_like(x), zeros, levels))
    ways = [(step.x_next - step.x).mean().item() for step in steps]
    print(
        f"{letter}: sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected; "
        f"first step {ways[0]:.4f}, sum {sum(ways):.4f}"
    )
assert round(levels[0], 4) == 2.9183
sheet([["", *programs.MEMORY], ["", *cells]])

# %% [markdown]
# The way from 2.9183 to 0 is -2.9183. Which program goes another way, and how far? Give the sum
# with two decimals, without its sign.

# %% tags=["exercise"]
overshooting = ...  # "A", "B" or "C"
way = ...  # a number

# %%
check("by_position", (overshooting, way))

# %% [markdown]
# ## What to read next
#
# * `minisd/samplers.py`, `k_lms`, `lms_weights` and `k_dpmpp_2`.
# * `minisd/more_samplers/guarded_lms.py`, and `docs/guarded-lms.svg`.
# * `docs/write-your-own-sampler.md`. `minisd lab FILE.py:FUNCTION` then tests your method as this
#   lesson did.
#
# Next lesson: [chance](07-chance.ipynb).
