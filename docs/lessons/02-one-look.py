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
# # 2. One look
#
# **How much of your drawing can the network see in one look?**
#
# The network does one thing: it gets a noisy latent and its noise level, and predicts the noise. If
# you know the noise, you know the picture. In this lesson you turn the prediction into a picture,
# compare it with the best blur, and find out why one look is not enough.

# %%
import torch
import torch.nn.functional as F

import minisd
from minisd.guidance import Guided
from minisd.images import to_pil, to_tensor
from minisd.lab.exact import Mixture
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.observe import Ledger
from minisd.schedule import model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style
x0 = sd.vae.encode(to_tensor(drawing))
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))

# %% [markdown]
# ## Exercise 1: from noise to picture
#
# `x = x0 + sigma * noise`, and the network's prediction of the noise is called `eps`. Which clean
# latent does it predict, then?


# %% tags=["exercise"]
def clean(x, eps, sigma):
    """The clean latent that the prediction eps stands for."""
    ...  # your code


# %%
check("clean", clean)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Put `eps` in the place of `noise` in the formula above, and solve it for `x0`.
# </details>
#
# ## Eight looks
#
# The next cell adds noise of eight levels to your drawing, and lets the network look once at each.
# Beside it stands the best that a blur can do. For each level we try 12 widths of blur on the noisy
# latent, and keep the one that comes closest to the clean latent. So the blur even cheats.


# %%
def blur(latent, width):
    """A Gaussian blur of a latent, `width` places wide (the standard deviation)."""
    places = torch.arange(-12.0, 13.0)
    weights = torch.exp(-(places**2) / (2 * width**2))
    weights = (weights / weights.sum()).expand(4, 1, -1)
    padded = F.pad(latent, (12, 12, 12, 12), "replicate")
    rows = F.conv2d(padded, weights[:, :, None], groups=4)
    return F.conv2d(rows, weights[..., None], groups=4)


def rms(difference):
    return float(difference.square().mean() ** 0.5)


levels = [0.0292, 0.3, 0.7, 1.3, 2.2, 3.3, 6.0, 14.6146]
predict_eps = Guided(sd.unet, sd.text_states(prompt), sd.text_states(""), guidance=1)
looks, blurs = [], []
with torch.inference_mode():
    for sigma in levels:
        x = x0 + sigma * noise
        looks.append(x - sigma * predict_eps(x, sigma))
        tries = [blur(x, 0.25 * 1.35**i) for i in range(12)]
        blurs.append(min(tries, key=lambda blurred: rms(blurred - x0)))
    rows = [
        ["sigma", *(f"{sigma:g}" for sigma in levels)],
        ["x, as the\nnetwork gets it"]
        + [to_pil(sd.vae.decode((x0 + s * noise) / (s**2 + 1) ** 0.5)) for s in levels],
        ["best blur of x", *(to_pil(sd.vae.decode(blurred)) for blurred in blurs)],
        ["one look", *(to_pil(sd.vae.decode(look)) for look in looks)],
    ]
sheet(rows, side=88)

# %% [markdown]
# And as curves. The error is the root mean square of the difference from the clean latent.

# %%
curves = {
    "x itself": [(s, rms(s * noise)) for s in levels],
    "best blur": [(s, rms(y - x0)) for s, y in zip(levels, blurs)],
    "one look": [(s, rms(y - x0)) for s, y in zip(levels, looks)],
}
# The noise is 14.6 times as large as at sigma 1, but the look's error is not.
assert curves["one look"][-1][1] < 0.2 * curves["x itself"][-1][1]
assert sum(error for _, error in curves["one look"]) < sum(error for _, error in curves["x itself"])
Plot("How far from the clean latent?", curves, "sigma", "error", log_x=True, log_y=True)

# %% [markdown]
# At the lowest level all three are close to the clean latent. At the highest one, the look is no
# longer your drawing. It is a guess from the words alone. Its error is still less than a fifth of
# the noise, because a guess need not be far from the truth.
#
# ## Why the look is blurred
#
# At high levels many pictures fit what the network sees. The answer with the smallest mean square
# error is the **average** of all pictures that fit, each weighted by its probability. An average of
# pictures is blurred, so one look is blurred.
#
# For simple data the average can be computed. Say that each number of the latent is drawn from a
# normal distribution of mean `mean` and standard deviation `std`. Then you see `x`, with noise of
# sigma. The average of all values that fit lies between `x` and `mean`.
#
# ## Exercise 2: the best guess
#
# Write the average. It is a weighted mean of `x` and `mean`, and the weights follow from the two
# variances.


# %% tags=["exercise"]
def best_guess(x, sigma, mean, std):
    """The mean of all clean values that could be below x."""
    ...  # your code


# %%
check("best_guess", best_guess)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Think of the ends. With sigma 0, the answer is `x`. With a very large sigma, x tells nothing, and
# the answer is `mean`. The weight of `x` is `std**2 / (std**2 + sigma**2)`.
# </details>
#
# minisd's laboratory has such data as models that are known exactly. No network can be better. How
# large is the smallest possible error, for data of standard deviation 1?

# %%
exact = Mixture(((1.0, 0.0, 1.0),))  # weight 1, mean 0, standard deviation 1
rng = torch.Generator().manual_seed(2)
data = torch.randn(1, 4, 100, 100, generator=rng)
print(" sigma   measured   sigma / sqrt(sigma^2 + 1)")
for sigma in levels:
    x = data + sigma * torch.randn(data.shape, generator=rng)
    error = rms(x - sigma * exact(x, sigma) - data)
    print(f"{sigma:6.4g} {error:10.4f} {sigma / (sigma**2 + 1) ** 0.5:15.4f}")
    assert abs(error / (sigma / (sigma**2 + 1) ** 0.5) - 1) < 0.02
assert round(1 / 2**0.5, 3) == 0.707

# %% [markdown]
# At sigma 1, picture and noise are equally strong, and the best guess is still 0.707 away. At high
# levels the error approaches 1, the spread of the data itself. So this is the answer to our
# question: a look can take away the noise, but not what the noise covers. Look at the row *one
# look* again: from where on is it no longer your drawing?
#
# ## Break it
#
# Three programs draw on your drawing at a low strength. Two start at sigma 0.625, and one starts
# lower. One of the three is wrong. At a low strength the result should look like the drawing.

# %%
cells = []
for letter, program in programs.LOOK.items():
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    print(
        f"{letter}: {ledger.steps_run} steps, image_gain {ledger.image_gain:.3f}, "
        f"sigma_added {ledger.sigma_added:.3f}, sigma_expected {ledger.sigma_expected:.3f}"
    )
assert round(model(10)[7], 3) == 0.625
sheet([["", *programs.LOOK, "drawing"], ["", *cells, drawing]])

# %% [markdown]
# Which program is wrong, and what is the gain of the picture in its `x`? Two decimals are enough.

# %% tags=["exercise"]
faded_by = ...  # "A", "B" or "C"
gain = ...  # a number

# %%
check("scaled", (faded_by, gain))

# %% [markdown]
# <details><summary>Hint</summary>
#
# The line of lesson 1 keeps the picture at full size. Which program does not?
# </details>
#
# ## What to read next
#
# * `minisd/guidance.py`: `Guided` scales x, looks up the timestep, and asks the network.
# * `minisd/lab/exact.py`: the exact models. `Mixture` has your `best_guess`, for several normal
#   distributions at once.
# * `docs/ideas.md`, "Predicting the noise".
#
# Next lesson: [the loop](03-the-loop.ipynb).
