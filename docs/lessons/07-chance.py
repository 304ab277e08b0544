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
# # 7. Chance
#
# **The same seed gives the same picture. When exactly, and when not?**
#
# All chance in a picture comes from one list of random numbers, and the seed chooses the list. Some
# samplers take more numbers from it at every step. In this lesson you write such a step, make its
# noise independent of the number of steps, and find a program that used its list twice.

# %%
import torch

import minisd
from minisd.lab.subject import GAUSSIAN
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.more_samplers.brownian import BrownianPath
from minisd.observe import Ledger, Trace, together
from minisd.samplers import ancestral_step, k_euler, k_euler_a
from minisd.schedule import karras, model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## A seed alone, and in a batch
#
# minisd gives each picture a generator of its own. So a picture does not depend on the others that
# are drawn beside it. Here seed 2 is drawn alone, and as the second of three.

# %%
settings = {"strength": 0.8, "steps": 6, "guidance": 4, "sampler": "k_euler_a"}
alone = minisd.img2img(sd, prompt, drawing, seed=2, **settings)
batch = minisd.img2img(sd, prompt, drawing, seed=[1, 2, 3], **settings)
gap = float((alone.latent - batch.latent[1:2]).abs().max())
other = float((alone.latent - batch.latent[0:1]).abs().max())
print(f"seed 2 alone and in the batch differ by at most {gap:.1e}; seeds 1 and 2 by {other:.1f}")
assert gap < 0.01 * other
sheet([["seed 2 alone", "1", "2", "3"], [alone.image, *batch.images]])

# %% [markdown]
# The two are equal up to rounding: a computer adds up a batch in another order. In programs where
# one generator draws for the whole batch, the second picture of a batch cannot be drawn alone.
#
# ## A step with fresh noise
#
# An **ancestral** step removes more noise than needed, down to the level `down`. Then it adds fresh
# noise of the level `up`, so that the noise after the step is exactly that of `sigma_next`.
#
# How large is `up`? DDPM's answer is `up = sigma_next * sqrt(1 - (sigma_next / sigma)**2)`. And
# `down`? Independent noises do not add up as numbers. Their **variances** add up.

# %%
rng = torch.Generator().manual_seed(1)
three, four = (torch.randn(100_000, generator=rng) * factor for factor in (3, 4))
total = float((three + four).std())
print(f"noise of 3 and noise of 4 make noise of {total:.2f}")
assert abs(total - 5) < 0.05

# %% [markdown]
# Noise of 3 and noise of 4 make noise of 5, because 9 + 16 = 25.
#
# ## Exercise 1: an ancestral step


# %% tags=["exercise"]
def ancestral(sigma, sigma_next):
    """(down, up): two floats."""
    ...  # your code


# %%
check("ancestral", ancestral)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `up` stands above. For `down` solve `down**2 + up**2 = sigma_next**2`.
# </details>
#
# ## Fresh noise on a path
#
# With such a sampler, each number of steps draws other noise, so each gives another picture. More
# steps never lead to a final one. But the noise need not be drawn anew. It can be read from one
# **Brownian path**: a random curve W over sigma. The noise of the step from a
# to b is the way that the path goes there, `-(W(a) - W(b)) / sqrt(a - b)`, which has variance 1.

# %%
x = 14.6146 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5)).double()
gaps = {"new draws": [], "one path": []}
for name, points in gaps.items():
    ends = []
    for steps in (10, 20, 40, 80, 160):
        source = BrownianPath(3) if name == "one path" else torch.Generator().manual_seed(3)
        *_, last = k_euler_a(GAUSSIAN, x, karras(steps)[:-1], generator=source)
        ends.append(last.x_next)
    for steps, a, b in zip((10, 20, 40, 80), ends, ends[1:]):
        points.append((steps, float((a - b).square().mean() ** 0.5)))
assert gaps["one path"][-1][1] < 0.3 * gaps["one path"][0][1]  # it settles
assert gaps["new draws"][-1][1] > 0.5 * gaps["new draws"][0][1]  # it does not
Plot(
    "From n to 2 n steps, the result moves by", gaps, "steps", "distance", log_x=True, log_y=True
)  # fmt: skip

# %% [markdown]
# With new draws the results do not settle. On one path, from 80 to 160 steps, they move less than a
# third as far as from 10 to 20.
#
# ## Exercise 2: one long step, or two short ones
#
# Two short steps, from a to b and from b to c, have the noises `noise_1` and `noise_2`. Which noise
# must the one long step from a to c have, so that it follows the same path?


# %% tags=["exercise"]
def merge(noise_1, noise_2, a, b, c):
    """The noise of the step from a to c. It has variance 1 again."""
    ...  # your code


# %%
check("merge", merge)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Turn the formula above round: the path goes by `sqrt(a - b) * noise_1` in the first step, up to
# the sign. Add the ways of the two steps. Divide by the root of the whole length.
# </details>
#
# minisd's path does this, at every level.

# %%
path, like = BrownianPath(3), torch.zeros(1, 4, 8, 8)
long_step, first, second = path(like, 6.0, 2.0), path(like, 6.0, 3.0), path(like, 3.0, 2.0)
assert torch.allclose(long_step, (3**0.5 * first + 1**0.5 * second) / 4**0.5, atol=1e-5)
print("the long step's noise is made of the two short steps' noises")

# %% [markdown]
# ## Break it
#
# Three programs with ancestral steps. Each step's fresh noise can be computed from what the trace
# recorded: it is what the step added beyond `down`. The table shows how much this noise resembles
# the noise of the start (their correlation: 0 is nothing in common, 1 is the same), and how much
# noise is in x after the first step.

# %%
cells = []
for letter, program in programs.CHANCE.items():
    with Ledger(sd, spoken=True) as ledger, Trace(sd) as trace:
        cells.append(program.draw(sd, prompt, drawing, observe=together(ledger, trace)))
    likeness = []
    for step, x_next in zip(trace.steps, trace.x[1:]):
        down, up = ancestral_step(step.sigma, step.sigma_next, 1.0)
        fresh = (x_next - step.x - (down - step.sigma) * step.eps) / up
        both = torch.stack([fresh.flatten(), trace.noise.flatten()])
        likeness.append(float(torch.corrcoef(both)[0, 1]))
    down, up = ancestral_step(trace.sigma[0], trace.sigma[1], 1.0)
    fresh = (trace.x[1] - trace.x[0] - (down - trace.sigma[0]) * trace.eps[0]) / up
    amount = float((down * trace.noise + up * fresh).std() / trace.noise.std())
    print(
        f"{letter}: sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected; "
        f"likeness by step", " ".join(f"{value:5.2f}" for value in likeness),
        f"; noise {amount:.2f} where {trace.sigma[1]:.2f} is expected",
    )  # fmt: skip
sheet([["", *programs.CHANCE], ["", *cells]])

# %% [markdown]
# Which program uses the same noise twice? And by which factor is there too much noise after its
# first step? Two decimals.

# %% tags=["exercise"]
repeating = ...  # "A", "B" or "C"
excess = ...  # a number

# %%
check("repeated", (repeating, excess))

# %% [markdown]
# <details><summary>Hint</summary>
#
# In a right program the noise after the step is close to the level expected. It differs a little by
# chance, since two draws are never quite unlike. If the two noises are equal, `down` and `up` add
# up as numbers: (1.303 + 1.451) / 1.950.
# </details>

# %%
down, up = ancestral_step(model(10)[3], model(10)[4], 1.0)
assert (round(down, 3), round(up, 3), round(model(10)[4], 3)) == (1.303, 1.451, 1.950)

# %% [markdown]
# ## What to read next
#
# * `minisd/samplers.py`, `ancestral_step` and `k_euler_a`.
# * `minisd/more_samplers/brownian.py`: the path, the same for any number of steps.
# * `minisd/run.py`, `seeded` and `draw_noise`: where the numbers come from.
#
# Next lesson: [words pull](08-words-pull.ipynb).
