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
# # 3. The loop
#
# **If one look already gives a picture, why does drawing take many steps?**
#
# In lesson 2, one look at strong noise gave a blurred average. A sampler uses such looks in small
# portions. In this lesson you write the loop, measure how its error falls with the number of steps,
# and see that DDIM is the same loop in other units.

# %%
import math

import torch

import minisd
from minisd.figures.strips import strip
from minisd.lab.subject import MIXTURE
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.observe import Ledger, Trace
from minisd.samplers import k_euler
from minisd.schedule import ABAR, SIGMAS, karras, model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## One step and ten
#
# `txt2img` starts from pure noise, at sigma 14.61. With one step it removes all of the predicted
# noise at once. With ten steps it removes a part, looks again, and so on.

# %%
settings = {"guidance": 1, "sampler": "k_euler", "seed": 1}
single = minisd.txt2img(sd, prompt, steps=1, **settings)
with Trace(sd) as trace:
    result = minisd.txt2img(sd, prompt, steps=10, observe=trace, **settings)
assert [round(sigma, 2) for sigma in model(1)] == [14.61, 0.0]
sheet([["steps", "1", "10"], ["result", single.image, result.image]])

# %% [markdown]
# A trace keeps every step. Below are the ten steps from left to right: `x`, which still has noise,
# and below it `x0`, the clean latent that the network predicts at this step.

# %%
assert trace.n_steps == 10
sheet([["x", strip(trace, "x", 64)], ["x0", strip(trace, "x0", 64)]])

# %% [markdown]
# The first `x0` is one look at pure noise: an average. Each later one sees less noise, so fewer
# pictures fit, and the average gets sharper. The loop does not correct one fixed answer. It asks
# again and again, and each answer decides a little more.

# %%
changes = [float((b - a).square().mean() ** 0.5) for a, b in zip(trace.x0, trace.x0[1:])]
print("x0 changes from step to step by", [round(change, 2) for change in changes])
assert changes[-1] < max(changes)  # the answers settle

# %% [markdown]
# ## Exercise 1: the loop
#
# `eps` says how `x` changes if sigma changes: it is the slope of `x` over sigma. Euler's method
# follows the slope from one level to the next. Write it for any `predict_eps(x, sigma)`.


# %% tags=["exercise"]
def euler(predict_eps, x, sigmas):
    """x at the last of the levels, from x at the first one."""
    ...  # your code


# %%
check("euler", euler)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `for sigma, sigma_next in zip(sigmas, sigmas[1:]):` gives each step. In it, predict eps at `x`,
# and add `(sigma_next - sigma) * eps`. Do not change `x` in place: write `x = x + ...`.
# </details>
#
# ## How good is the loop?
#
# For the small model nobody knows the right result. For an exact model it is known:
# `MIXTURE.flow` computes the point where infinitely many steps would end. So the error of the loop
# can be measured.

# %%
rng = torch.Generator().manual_seed(1)
x = 14.6146 * torch.randn(1, 4, 16, 16, generator=rng).double()
exact = MIXTURE.flow(x, karras(8)[0], 0.0292)
points = []
for steps in (8, 16, 32, 64, 128):
    sigmas = karras(steps)[:-1]  # down to 0.0292: the last step to 0 is left out
    *_, last = k_euler(MIXTURE, x, sigmas)
    points.append((steps, float((last.x_next - exact).square().mean() ** 0.5)))
order = math.log2(points[-2][1] / points[-1][1])
print(f"128 steps in place of 64 divide the error by {2**order:.2f}")
assert 1.8 < 2**order < 2.2
Plot(
    "Error of Euler's method", {"k_euler": points}, "steps", "error",
    log_x=True, log_y=True, slopes=(1, 2),
)  # fmt: skip

# %% [markdown]
# Twice as many steps halve the error: Euler's method has **order 1**. The dashed line of order 1
# has the same slope. Lesson 6 is about methods of higher order.
#
# ## The same loop in the papers
#
# DDIM's paper writes the loop in other units. Its latent is `y = x / sqrt(sigma^2 + 1)`, which has
# variance 1 at all levels. Instead of sigma it has **abar**, the share of the variance of y that is
# picture. `abar = 1 / (sigma^2 + 1)`. So y holds `sqrt(abar)` of the picture, and `sqrt(1 - abar)`
# of the noise.

# %%
for t in (0, 300, 500, 999):
    print(f"t {t:3}: sigma {SIGMAS[t]:7.4f}, abar {ABAR[t]:.4f}")
    assert abs(ABAR[t] - 1 / (SIGMAS[t] ** 2 + 1)) < 1e-12
assert round(float(ABAR[500]), 3) == 0.276 and round(float(ABAR[999]), 4) == 0.0047

# %% [markdown]
# At t = 500, halfway, abar is 0.276: a quarter of the variance is picture. At t = 999 it is 0.0047,
# and not 0. Lesson 5 shows what follows from that.
#
# ## Exercise 2: a step of DDIM
#
# Write one step in the paper's units. First take all noise out of y. Then put the picture and the
# noise together again, in the shares of the next level.


# %% tags=["exercise"]
def ddim_step(y, eps, abar, abar_next):
    """y at the next level. y has variance 1."""
    ...  # your code


# %%
check("ddim_step", ddim_step)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The clean latent is `y0 = (y - sqrt(1 - abar) * eps) / sqrt(abar)`. The next y is made of `y0` and
# `eps` in the same way as y, but with `abar_next`. abar is a number: write `abar**0.5`.
# </details>
#
# The check compares your step with Euler's step of `x`. They are the same method. So the answer to
# our question is: a look gives a direction, and a direction is right only for a short way.
#
# ## Break it
#
# Three programs again. The ledger's `sigma_added` and `sigma_expected` agree in all three. But it
# also measures the factor from `x` to what the network really gets, `input_scale`.

# %%
cells = []
for letter, program in programs.LOOP.items():
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    print(
        f"{letter}: {ledger.steps_run} steps, {ledger.calls} calls, "
        f"sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected, "
        f"input_scale {ledger.input_scale:.4f}"
    )
sheet([["", *programs.LOOP], ["", *cells]])

# %% [markdown]
# Which program is wrong? And how many times too large is the network's first input in it? Two
# decimals are enough.

# %% tags=["exercise"]
careless = ...  # "A", "B" or "C"
times = ...  # a number

# %%
check("unscaled", (careless, times))

# %% [markdown]
# ## What to read next
#
# * `minisd/samplers.py`, `k_euler` and `ddim`: seven lines each around your step.
# * `minisd/observe/trace.py`: how a run is recorded without changing it.
# * `docs/see-every-step.md`: strips of every step, from the command line.
#
# Next lesson: [strength](04-strength.ipynb).
