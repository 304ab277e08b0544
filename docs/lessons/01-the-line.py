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
# # 1. The line
#
# **How much noise does image-to-image add to your drawing, and how does the network know?**
#
# Image-to-image is a loop around one line: `x = x0 + sigma * noise`. In this lesson you write that
# line, measure what it does, and find the mistake that one of the most used programs makes in it.
#
# You need no GPU and no internet. Run the cells from top to bottom. Where a cell says
# `your code`, replace the `...`, then run the check below it. Each check says *not solved yet*,
# *wrong, because ...*, or *right*. Lines with `assert` check the numbers that the text gives. You
# can skip them.

# %%
import torch
from PIL import ImageFilter

import minisd
from minisd.guidance import Guided
from minisd.images import to_pil, to_tensor
from minisd.lessons import check, my_drawing, programs, sheet
from minisd.observe import Ledger
from minisd.samplers import k_euler
from minisd.schedule import SIGMAS, model, sigma_to_t

torch.set_num_threads(1)  # the small model is fastest so
sd = minisd.load()

# %% [markdown]
# ## Your drawing
#
# Draw something with any program, and save it beside this notebook as `my-drawing.png`. Without
# such a file, the lesson uses a house. Say in the prompt what you drew. `noto` is a style that the
# small model knows: that of Google's Noto emoji.

# %%
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style
drawing.resize((192, 192))

# %% [markdown]
# Stable Diffusion does not work on pixels. Its autoencoder makes a **latent** of your drawing: a
# smaller picture with four channels. We call it the clean latent, `x0`. Lesson 9 is about it.

# %%
x0 = sd.vae.encode(to_tensor(drawing))
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
assert x0.shape[1] == 4 and noise.shape == x0.shape
f"{drawing.width}x{drawing.height} pixels of 3 colours, {tuple(x0.shape[2:])} places of 4 numbers"

# %% [markdown]
# ## Adding noise
#
# `noise` holds normally distributed random numbers of standard deviation 1, one for each number of
# the latent. The **noise level** sigma says how much of it is added. The network was trained on
# 1000 levels, from 0.0292 to 14.6146.

# %%
assert len(SIGMAS) == 1000
assert round(float(SIGMAS[0]), 4) == 0.0292 and round(float(SIGMAS[-1]), 4) == 14.6146
levels = [0.0292, 0.3, 0.7, 1.3, 2.2, 3.3, 6.0, 14.6146]
pictures = []
for sigma in levels:
    x = x0 + sigma * noise
    x_in = x / (sigma**2 + 1) ** 0.5  # scaled as the network gets it
    pictures.append(to_pil(sd.vae.decode(x_in)))
blurred = [drawing.filter(ImageFilter.GaussianBlur(2 * sigma)) for sigma in levels]
sheet(
    [
        ["sigma", *(f"{sigma:g}" for sigma in levels)],
        ["noise added", *pictures],
        ["blurred", *blurred],
    ],
    side=96,
)

# %% [markdown]
# Both rows lose the drawing from left to right. A blur removes the details. Noise covers them, and
# large shapes stay visible longest.
#
# How much noise is in `x`? We know `x0`, so we can subtract it and measure the rest.

# %%
print("  sigma   std of x - x0   std of x   sqrt(sigma^2 + std(x0)^2)")
for sigma in levels:
    x = x0 + sigma * noise
    rest, total = float((x - x0).std()), float(x.std())
    expected = (sigma**2 + float(x0.std()) ** 2) ** 0.5
    print(f"{sigma:7.4g} {rest:15.4f} {total:10.4f} {expected:20.4f}")
    assert abs(rest / sigma - 1) < 0.05
    assert abs(total / expected - 1) < 0.1

# %% [markdown]
# The rest has the standard deviation sigma, within 5 % for this draw of the noise. The variances of
# picture and noise add up, nearly. They do so exactly only on average over all noises.
#
# ## Exercise 1: the line
#
# Write the function that adds noise of the level `sigma`.


# %% tags=["exercise"]
def insert(x0, noise, sigma):
    """x: the clean latent x0 with noise of this level."""
    ...  # your code


# %%
check("insert", insert)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The picture stays as it is. Only the noise is multiplied, by its standard deviation. Do not forget
# `return`.
# </details>
#
# ## What the network gets
#
# The network gets the noisy latent, the words, and a number t that says how noisy the latent is. t
# is the place of sigma in the list of 1000 levels. Then it predicts the noise. If you pass it the
# wrong level, it still answers, and nothing crashes.
#
# The next cell adds 0.5, 1, 1.2 and 1.5 times the noise of the level that is passed to the network,
# and removes it in seven steps. `Guided` asks the network, and `k_euler` is the loop around it.
# Lessons 2 and 3 take both apart. Here only the factor matters.

# %%
sigmas = model(10)[minisd.start_index(steps=10, strength=0.7) :]
factors = torch.tensor([0.5, 1.0, 1.2, 1.5]).view(4, 1, 1, 1)
predict_eps = Guided(sd.unet, sd.text_states(prompt), sd.text_states(""), guidance=4)
with torch.inference_mode():
    *_, last = k_euler(predict_eps, x0 + factors * sigmas[0] * noise, sigmas)
    results = [to_pil(sd.vae.decode(latent[None])) for latent in last.x_next]
assert len(sigmas) == 8  # seven steps
sheet([["times the noise", "0.5", "1", "1.2", "1.5"], ["result", *results]])

# %% [markdown]
# With too little noise, the network takes parts of your drawing for noise and removes them. With
# too much, noise stays in the picture. At 1.2 the result looks almost right, so such a mistake can
# go unnoticed for years. So the level has to be measured.
#
# ## Exercise 2: measure the level
#
# You have `x`, `x0` and `noise`, and nobody tells you how `x` was made. Find the two **gains**: the
# numbers a and b for which `a * x0 + b * noise` comes closest to `x`. In a right program a is 1
# and b is sigma.


# %% tags=["exercise"]
def measure(x, x0, noise):
    """(a, b): the gain of the picture and the gain of the noise in x, two floats."""
    ...  # your code


# %%
check("measure", measure)

# %% [markdown]
# <details><summary>Hint</summary>
#
# This is a least-squares problem with two unknowns. Flatten the tensors, make a matrix with two
# columns, `torch.stack([x0.flatten(), noise.flatten()], dim=1)`, and pass it to
# `torch.linalg.lstsq(matrix, x.flatten()[:, None])`. The two gains are in its
# `.solution.flatten().tolist()`.
# </details>
#
# ## The ledger
#
# minisd measures the same two numbers in every run, with an observer that is called the **ledger**.
# It also notes which level the network expects at its first call.

# %%
with Ledger(sd) as ledger:
    minisd.img2img(sd, prompt, drawing, strength=0.7, steps=10, guidance=4, seed=1, observe=ledger)
print(ledger.line())
assert abs(ledger.sigma_added / ledger.sigma_expected - 1) < 1e-5
assert abs(ledger.image_gain - 1) < 1e-4
assert round(ledger.sigma_expected, 3) == 2.918

# %% [markdown]
# So the answer to the question of this lesson: at strength 0.7 and 10 steps, noise of the level
# 2.918 is added, and exactly this level is passed to the network, as a timestep.

# %%
start = minisd.start_index(steps=10, strength=0.7)
assert start == 3 and round(sigma_to_t(model(10)[start])) == 666
print([round(sigma, 3) for sigma in model(10)])
print(f"the run starts at place {start}, sigma {model(10)[start]:.3f}, t = 666")

# %% [markdown]
# ## Break it
#
# Here are three programs, A, B and C. Each draws on your drawing with 10 steps. One of them is
# wrong in the way in which a famous program was wrong. Look at the pictures first. Then read what
# the ledger measured.

# %%
cells = []
for letter, program in programs.LINE.items():
    with Ledger(sd, spoken=True) as ledger:  # spoken: measure, and do not stop
        picture = program.draw(sd, prompt, drawing, observe=ledger)
    cells.append(picture)
    print(
        f"{letter}: {ledger.steps_run} steps, sigma {ledger.sigma_added:.4f} added, "
        f"{ledger.sigma_expected:.4f} expected, gain of the picture {ledger.image_gain:.4f}"
    )
sheet([["", *programs.LINE], ["", *cells]])

# %% [markdown]
# Which program is wrong? And by how many places in the list above is the level that it adds away
# from the level that it expects?

# %% tags=["exercise"]
suspect = ...  # "A", "B" or "C"
places = ...  # a whole number

# %%
check("slip", (suspect, places))

# %% [markdown]
# ## What to read next
#
# * `minisd/img2img.py`: find the line that is marked with `<<<`.
# * `minisd/observe/ledger.py`: how the ledger measures. Its function `gains` is your `measure`.
# * `minisd/dialects/compvis.py`: how minisd draws what CompVis would have drawn, mistake included.
#
# Next lesson: [one look](02-one-look.ipynb).
