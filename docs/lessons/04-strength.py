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
# # 4. Strength
#
# **What does strength 0.7 mean, and why do two programs draw different pictures with it?**
#
# Image-to-image does not start from pure noise. It skips the first steps of the schedule, and adds
# noise of the level where it starts. Strength says how much is left to run. In this lesson you
# write that rule, and the rules of two other programs.

# %%
import math

import torch

import minisd
from minisd.images import to_tensor
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.observe import Ledger, plan

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## A ladder of strengths
#
# `plan` computes from the settings what a run is going to do. No model is needed for that.

# %%
strengths = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
print("strength   steps run   starts at sigma   picture's share of the network's input")
for strength in strengths:
    run = plan(10, strength)
    print(f"{strength:8} {run.steps_run:11} {run.sigma:17.3f} {run.image_share:15.1%}")
    assert run.steps_run == round(10 * strength)
assert round(plan(10, 0.6).sigma, 2) == 1.95 and round(plan(10, 0.8).sigma, 2) == 4.61

# %%
settings = {"steps": 10, "guidance": 4, "sampler": "k_euler", "seed": 1}
results = [
    minisd.img2img(sd, prompt, drawing, strength=strength, **settings) for strength in strengths
]
distances = [
    float((to_tensor(result.image) - to_tensor(drawing)).square().mean() ** 0.5) * 255 / 2
    for result in results
]
assert distances[-1] > distances[0]
sheet(
    [
        ["strength", *(f"{strength:g}" for strength in strengths)],
        ["result", *(result.image for result in results)],
        ["from the drawing,\nlevels of 255", *(f"{distance:.0f}" for distance in distances)],
    ]
)

# %% [markdown]
# At strength 0 no step is run: what you see is the drawing after the autoencoder. With each step of
# strength the run starts at a higher level, 1.95 at 0.6 and 4.61 at 0.8. So less of the drawing
# survives. At strength 1 all steps are run, and almost nothing of the drawing is left.
#
# ## Exercise 1: where to start
#
# `floor(steps * strength)` steps are run, the last ones of the schedule. How many are skipped?
# Beware: a computer does not multiply exactly.

# %%
print(f"50 * 0.58 = {50 * 0.58!r}")
assert 50 * 0.58 < 29


# %% tags=["exercise"]
def first_step(steps, strength):
    """How many of the steps are skipped: a whole number."""
    ...  # your code


# %%
check("first_step", first_step)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `round(steps * strength, 9)` gives 29.0 for 50 and 0.58. `math.floor` makes a whole number of it.
# </details>
#
# ## Why one step more makes another picture
#
# The guide that minisd grew out of ends with a riddle: at strength 0.7, 29 and 30 steps gave two
# quite different fires. The schedule is cut at a whole step, so the level at which a run starts
# jumps from one count to the next.

# %%
counts = range(10, 61)
starts = [(steps, plan(steps, 0.7).sigma) for steps in counts]
assert round(plan(30, 0.7).sigma, 4) == 3.1913 and round(plan(29, 0.7).sigma, 4) == 3.0557
Plot("Where a run of strength 0.7 starts", {"sigma": starts}, "steps asked", "starting level")

# %% [markdown]
# 30 steps start at sigma 3.1913, and 29 at 3.0557. That is 4 % less noise, so more of the drawing
# survives. The next steps build on this difference.

# %%
assert round(100 * (1 - plan(29, 0.7).sigma / plan(30, 0.7).sigma)) == 4
jumps = [abs(b / a - 1) for (_, a), (_, b) in zip(starts, starts[1:])]
print(f"largest jump from one count to the next: {max(jumps):.0%}; from 59 to 60: {jumps[-1]:.1%}")
assert jumps[-1] < max(jumps) / 3  # with more steps the jumps get smaller

# %% [markdown]
# ## Other programs
#
# The same two numbers mean different things elsewhere:
#
# * **minisd** and InvokeAI run `floor(steps * strength)` steps.
# * **AUTOMATIC1111** runs one step more, but never more than there are. (This is for its
#   k-diffusion samplers.)
# * **ComfyUI** runs all the steps that you ask for. It makes a schedule of `int(steps / strength)`
#   steps, and runs the end of it.
#
# ## Exercise 2: three rules
#
# How many steps does each program run? The check knows from minisd's dialects, which draw as these
# programs do.


# %% tags=["exercise"]
def steps_run(program, steps, strength):
    """The number of steps run. program is "minisd", "a1111" or "comfyui"."""
    ...  # your code


# %%
check("steps_run", steps_run)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Write three branches: `if program == "a1111": ...`. AUTOMATIC1111 makes 8 of 10 steps at strength
# 0.7, and 10 at strength 1.
# </details>
#
# The levels at which they start differ as well. Each point below is where one program starts at 10
# steps.

# %%
curves = {"minisd": [], "a1111": [], "comfyui": []}
for strength in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
    for program, points in curves.items():
        if program == "minisd":
            sigma = plan(10, strength, "k_euler").sigma
        else:
            recipe = minisd.Recipe(
                "", image="x.png", sampler="k_euler", steps=10, strength=strength
            )
            sigma = minisd.DIALECTS[program].sigmas(recipe)[0]
        points.append((strength, sigma))
assert [round(dict(points)[0.7], 1) for points in curves.values()] == [2.9, 4.6, 3.2]
Plot("Where 10 steps start", curves, "strength", "starting level", log_y=True)

# %% [markdown]
# At strength 0.7, minisd starts at sigma 2.9, AUTOMATIC1111 at 4.6 and ComfyUI at 3.2. So this
# is the answer: strength is a share of the *steps*, not of the noise, and programs count steps in
# different ways.
#
# ## Break it
#
# Three programs, each asked for 10 steps at strength 0.7. The levels added and expected agree in
# all of them, and the pictures do not give it away. But one program does not keep its promise.

# %%
cells = []
for letter, program in programs.STRENGTH.items():
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    print(
        f"{letter}: {ledger.steps_run} steps, {ledger.calls} calls, "
        f"sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected"
    )
sheet([["", *programs.STRENGTH], ["", *cells]])

# %% [markdown]
# Which program is wrong? And how many steps would it run if you ask for 30 steps at strength 0.7?

# %% tags=["exercise"]
miscounting = ...  # "A", "B" or "C"
run_of_30 = ...  # a whole number

# %%
check("short", (miscounting, run_of_30))

# %% [markdown]
# ## What to read next
#
# * `minisd/schedule.py`, `start_index`: your `first_step`.
# * `minisd/observe/plan.py`: what a run is going to do. `minisd explain -s 30 -f 0.7` prints it.
# * `docs/dialects.md`: the rules of five programs.
#
# Next lesson: [where the steps go](05-where-the-steps-go.ipynb).
