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
# # 5. Where the steps go
#
# **You can afford ten looks. At which noise levels should the network look?**
#
# A schedule is a list of noise levels that fall. The network can look at any of 1000 levels, so the
# list is ours to choose. In this lesson you write the best-known schedule, try to find a better
# one, and look at the two ends of the list, where programs go wrong.

# %%
import math

import torch

import minisd
from minisd.lab.exact import Mixture
from minisd.lab.subject import MIXTURE
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.observe import Ledger, Trace, together
from minisd.samplers import k_euler
from minisd.schedule import ABAR, SIGMAS, ddim, karras, model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## Three schedules
#
# `model` takes even steps through the 1000 timesteps of the training. `karras` takes even steps in
# the seventh root of sigma. `ddim` looks like `model`, but it starts and ends elsewhere.

# %%
schedules = {"model": model(10), "karras": karras(10), "ddim": ddim(10)}
for name, sigmas in schedules.items():
    print(f"{name:7}", "  ".join(f"{sigma:.2f}" for sigma in sigmas))
    above = sum(sigma > 1 for sigma in sigmas[:-1])
    print(f"        {above} of {len(sigmas) - 1} steps start above sigma 1")
curves = {
    name: [(i, sigma) for i, sigma in enumerate(sigmas) if sigma > 0]
    for name, sigmas in schedules.items()
}
Plot("Ten steps", curves, "step", "sigma", log_y=True)

# %%
assert round(schedules["model"][0], 2) == 14.61
assert sum(sigma > 1 for sigma in schedules["model"]) == 6
assert sum(0.3 < sigma < 8 for sigma in schedules["model"]) == 8
assert sum(sigma > 1 for sigma in schedules["karras"]) == 5
assert [round(float(sigma), 4) for sigma in (SIGMAS[0], SIGMAS[-1])] == [0.0292, 14.6146]
assert schedules["model"][-2:] == [float(SIGMAS[0]), 0.0]
assert round(schedules["ddim"][0], 2) == 8.39 and schedules["ddim"][-1] == float(SIGMAS[0])

# %% [markdown]
# Of ten steps, `model` starts 6 above sigma 1, where the large shapes are decided, and `karras`
# starts 5 there. `karras` spends more on the details. `ddim` starts at 8.39 instead of 14.61, and
# ends at 0.0292, not at 0.
#
# With few steps the choice can be seen. These are pictures of six steps.

# %%
results = {}
for name, schedule in (("model", model), ("karras", karras), ("ddim", ddim)):
    options = {"steps": 6, "guidance": 4, "sampler": "k_euler", "seed": 1, "schedule": schedule}
    results[name] = minisd.txt2img(sd, prompt, **options).image
sheet([["schedule", *results], ["six steps", *results.values()]])

# %% [markdown]
# ## Exercise 1: Karras's schedule
#
# Write it: `steps` levels that are even in `sigma**(1 / rho)`, from `SIGMAS[-1]` (14.6146) down to
# `SIGMAS[0]` (0.0292). Then comes one more level, 0.


# %% tags=["exercise"]
def karras_levels(steps, rho):
    """steps + 1 falling levels, the last one 0."""
    ...  # your code


# %%
check("karras_levels", karras_levels)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Take the roots of both ends, `high = SIGMAS[-1] ** (1 / rho)` and `low` likewise. Walk evenly from
# high to low: `high + i / (steps - 1) * (low - high)`. Raise each to the power rho. Append 0.0.
# </details>
#
# ## Exercise 2: find a better one
#
# For an exact model the right result is known, so the error of a schedule can be measured. The next
# cell does that for Euler's method with 8 steps. Your schedule should have a smaller error than
# `model`. There are many such schedules, and the board of minisd's laboratory compares them.


# %%
def error(sigmas):
    """How far Euler's method ends from the exact result (root mean square)."""
    x = sigmas[0] * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1000)).double()
    *_, last = k_euler(MIXTURE, x, sigmas)
    return float((last.x_next - MIXTURE.flow(x, sigmas[0], 0.0)).square().mean() ** 0.5)


for name, schedule in (("model", model), ("karras", karras)):
    print(f"{name}: {error(schedule(8)):.4f}")
assert all(error(model(8)) < error(karras(8, rho)) for rho in (1.5, 3.0, 7.0, 20.0))


# %% tags=["exercise"]
def better(steps):
    """steps + 1 falling levels, from 14.6146 to 0, with a smaller error than model(steps)."""
    ...  # your code


# %%
check("better", better)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Karras's schedule is worse than `model` for every rho, as you can try. A function other than the
# root helps: take even steps in `math.atan(sigma)`, from `math.atan(14.6146)` down to
# `math.atan(0.0292)`, and turn them back with `math.tan`. Append 0.0.
# </details>
#
# ## The upper end: not quite noise
#
# The highest level of the training is 14.6146. There abar is 0.00466, so a little of the picture
# was still in what the network saw. A program that draws from pure noise leaves it out. Does that
# matter? For a white picture, with mean 1 and standard deviation 0.5, it can be computed.

# %%
assert round(float(ABAR[-1]), 5) == 0.00466
white = Mixture(((1.0, 1.0, 0.5),))
middle = torch.zeros(1, 4, 1, 1).double()  # pure noise has the mean 0, not 1
end = white.flow(middle, float(SIGMAS[-1]), 0.0).mean().item()
print(f"a picture of mean 1 is drawn with mean {end:.3f}")
assert round(end, 3) == 0.966 and abs(end - (1 - 0.5 / (0.25 + SIGMAS[-1] ** 2) ** 0.5)) < 1e-6

# %% [markdown]
# The picture gets the mean 0.966: 3.4 % of the brightness is lost, towards grey. So SD 1.x has
# trouble with very bright and very dark pictures. This is known as the grey bias of its schedule.

# %%
assert round(100 * (1 - end), 1) == 3.4

# %% [markdown]
# ## The lower end: break it
#
# Three programs draw on your drawing at a low strength. A runs on the schedule `model`, B and C on
# `ddim`. The ledger finds nothing, and the pictures look almost the same. Read the levels.

# %%
cells = []
for letter, program in programs.ENDS.items():
    with Ledger(sd, spoken=True) as ledger, Trace(sd) as trace:
        cells.append(program.draw(sd, prompt, drawing, observe=together(ledger, trace)))
    walked = [*trace.sigma, trace.sigma_next[-1]]
    print(f"{letter}: {ledger.calls} calls, levels", "  ".join(f"{sigma:.4f}" for sigma in walked))
sheet([["", *programs.ENDS], ["", *cells]])

# %% [markdown]
# Which program stops too early? And which level of noise is left in its picture? Four decimals.

# %% tags=["exercise"]
early = ...  # "A", "B" or "C"
left_over = ...  # a number

# %%
check("ends", (early, left_over))

# %% [markdown]
# So this is the answer to our question: most looks go to the middle levels, where shapes are
# decided. In the schedule `model`, 8 of 10 lie between sigma 0.3 and 8. But the list must begin
# where the noise begins, and end where it ends.
#
# ## What to read next
#
# * `minisd/schedule.py`, `model`, `karras` and `ddim`.
# * `minisd/more_samplers/schedules.py`: more schedules, each a function of the number of steps.
# * `docs/board.md`: the error of each sampler by network calls.
#
# Next lesson: [longer memory](06-longer-memory.ipynb).
