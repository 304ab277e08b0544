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
# # 8. Words pull
#
# **The network only predicts noise. How can words steer it?**
#
# The words of a prompt reach the network as a third input, beside the noisy latent and its level.
# With other words it predicts other noise, and so another picture. Programs exaggerate this
# difference, which is called guidance. In this lesson you write it, see what it does to the
# picture, and repair one of its side effects.

# %%
import torch

import minisd
from minisd.guidance import Guided
from minisd.images import to_pil, to_pils, to_tensor
from minisd.lab.exact import Mixture
from minisd.lessons import Plot, check, my_drawing, programs, sheet
from minisd.more_samplers.guidance_rules import rescale as ready_rescale
from minisd.observe import Ledger, Trace, together
from minisd.samplers import k_euler
from minisd.schedule import karras, model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## With words and without
#
# `Guided.both` asks the network twice: once without words and once with the prompt. Here it looks
# at your drawing with noise of three levels. Below the two looks, their difference is shown, as a
# picture around grey.

# %%
x0 = sd.vae.encode(to_tensor(drawing))
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
predict_eps = Guided(sd.unet, sd.text_states(prompt), sd.text_states(""), guidance=4)
rows, effects = [["sigma"], ["without words"], ["with the prompt"], ["difference"]], []
with torch.inference_mode():
    for sigma in (1.0, 3.0, 14.6):
        eps_uncond, eps_cond = predict_eps.both(x0 + sigma * noise, sigma)
        looks = [x0 + sigma * (noise - eps) for eps in (eps_uncond, eps_cond)]
        pictures = [sd.vae.decode(look) for look in looks]
        effects.append(float((looks[1] - looks[0]).square().mean() ** 0.5))
        cells = [f"{sigma:g}", *map(to_pil, pictures), to_pil(pictures[1] - pictures[0])]
        for row, cell in zip(rows, cells):
            row.append(cell)
print("the words change the predicted clean latent by", [round(effect, 2) for effect in effects])
assert effects[-1] > effects[0]
sheet(rows)

# %% [markdown]
# The more noise, the less the network sees, and the more the words change. At the highest level
# they change more than at the lowest of the three. There the words decide almost everything.
#
# ## Exercise 1: guidance
#
# Start from the prediction without words, and go `scale` times the way to the prediction with
# words.


# %% tags=["exercise"]
def guide(eps_uncond, eps_cond, scale):
    """The guided prediction."""
    ...  # your code


# %%
check("guide", guide)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The way from a to b is `b - a`. At scale 1 you must arrive at eps_cond.
# </details>
#
# ## From 1 to 16
#
# Five pictures from one noise, with five scales. They run as one batch.

# %%
scales = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).view(5, 1, 1, 1)


def five_scales(eps_uncond, eps_cond, x, sigma):
    return eps_uncond + scales * (eps_cond - eps_uncond)


def draw(rule, steps=6):
    """Five latents of one noise, drawn from pure noise with a guidance rule."""
    sigmas = model(steps)
    predict_eps = Guided(sd.unet, sd.text_states(prompt), sd.text_states(""), rule)
    with torch.inference_mode():
        *_, last = k_euler(predict_eps, sigmas[0] * noise.expand(5, -1, -1, -1), sigmas)
        return last.x_next


latents = draw(five_scales)
spreads = latents.std((1, 2, 3))
print("spread of the latents:", [round(float(spread), 2) for spread in spreads])
assert spreads[4] > spreads[0]
with torch.inference_mode():
    guided = to_pils(sd.vae.decode(latents))
sheet([["guidance", "1", "2", "4", "8", "16"], ["result", *guided]])

# %% [markdown]
# More guidance gives a clearer thing, then harder contrasts, and then a burnt picture. The spread
# of the latent at 16 is larger than at 1. Why does it overshoot?
#
# ## The exact answer
#
# Take the simplest prompt of all. Without words, numbers have mean 0 and standard deviation 1. With
# the words they have mean 1 and standard deviation 0.3. For both, the best network is known.

# %%
anything = Mixture(((1.0, 0.0, 1.0),))
prompted = Mixture(((1.0, 1.0, 0.3),))
start = 14.6146 * torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(1)).double()
means, stds = [], []
for scale in (1.0, 2.0, 4.0, 8.0):

    def predict(x, sigma, scale=scale):
        eps_uncond, eps_cond = anything(x, sigma), prompted(x, sigma)
        return eps_uncond + scale * (eps_cond - eps_uncond)

    *_, last = k_euler(predict, start, karras(60))
    means.append((scale, float(last.x_next.mean())))
    stds.append((scale, float(last.x_next.std())))
    print(f"scale {scale:g}: mean {means[-1][1]:.2f}, standard deviation {stds[-1][1]:.2f}")
assert abs(means[0][1] - 1) < 0.05 and abs(stds[0][1] - 0.3) < 0.05
assert means[-1][1] > means[0][1] + 0.1 and stds[-1][1] < 0.1
Plot(
    "What guidance draws", {"mean": means, "standard deviation": stds}, "guidance", "of the results"
)

# %% [markdown]
# At scale 1 the results are what the words mean: mean 1 and standard deviation 0.3, within 0.05.
# With more guidance they go beyond it, away from "anything", and lose their variety. At scale 8 the
# standard deviation is below 0.1. So guided pictures are not drawn from the model's own
# distribution. They are caricatures.
#
# ## Exercise 2: rescale
#
# One repair of the hard contrasts (Lin and others, 2023): bring the guided prediction back to the
# standard deviation of `eps_cond`, but only a share `phi` of the way. At phi 0 nothing changes.
# Each picture of the batch has a standard deviation of its own.


# %% tags=["exercise"]
def rescale(eps_uncond, eps_cond, scale, phi):
    """The guided prediction (B, 4, h, w), with less contrast."""
    ...  # your code


# %%
check("rescale", rescale)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Compute `eps` as in exercise 1. The standard deviation of each picture is
# `eps.std((1, 2, 3), keepdim=True)`. Multiply eps by the ratio of the two, and mix:
# `phi * rescaled + (1 - phi) * eps`.
# </details>
#
# minisd has this rule. The next cell uses it at phi 1, for the same five scales. First it measures
# one prediction, then it draws.


# %%
def five_rescaled(eps_uncond, eps_cond, x, sigma):
    return torch.cat(
        [
            ready_rescale(float(scale), 1.0)(u[None], c[None], x, sigma)
            for scale, u, c in zip(scales, eps_uncond, eps_cond)
        ]
    )


x = x0 + 14.6 * noise
plain = five_scales(eps_uncond, eps_cond, x, 14.6).std((1, 2, 3))
mild = five_rescaled(eps_uncond.expand(5, -1, -1, -1), eps_cond.expand(5, -1, -1, -1), x, 14.6)
mild = mild.std((1, 2, 3))
print("spread of eps, guided:  ", [round(float(spread), 2) for spread in plain])
print("spread of eps, rescaled:", [round(float(spread), 2) for spread in mild])
assert plain[4] > plain[0] and torch.allclose(mild, eps_cond.std().expand(5), rtol=1e-3)
with torch.inference_mode():
    rescaled = to_pils(sd.vae.decode(draw(five_rescaled)))
sheet([["guidance", "1", "2", "4", "8", "16"], ["guided", *guided], ["rescaled", *rescaled]])

# %% [markdown]
# Rescaled predictions all have the spread of `eps_cond`, at any scale. This limits how strong a
# prediction is, but not where it points. So a large scale still draws a caricature. Look closely at
# 8 and 16: a weaker prediction also removes less noise.
#
# ## Break it
#
# Three programs with guidance 4. The levels agree in all of them. But the ledger only measures the
# start. So look at what the network's answer became: its standard deviation should be near 1, since
# the noise has the standard deviation 1.

# %%
cells = []
for letter, program in programs.WORDS.items():
    with Ledger(sd, spoken=True) as ledger, Trace(sd) as trace:
        cells.append(program.draw(sd, prompt, drawing, observe=together(ledger, trace)))
    print(
        f"{letter}: sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected; "
        f"standard deviation of eps in the first step {float(trace.eps[0].std()):.2f}"
    )
sheet([["", *programs.WORDS], ["", *cells]])

# %% [markdown]
# A guided prediction is `a * eps_cond + b * eps_uncond`. In a right program, a + b is 1. Which
# program is wrong, and what is a + b in it? A whole number.

# %% tags=["exercise"]
burnt = ...  # "A", "B" or "C"
weights_sum = ...  # a whole number

# %%
check("plus", (burnt, weights_sum))

# %% [markdown]
# <details><summary>Hint</summary>
#
# Both predictions are mostly the same noise. So the standard deviation of the sum tells what a + b
# is.
# </details>
#
# ## What to read next
#
# * `minisd/guidance.py`: all of it, 60 lines.
# * `minisd/more_samplers/guidance_rules.py`: rescale, interval, APG and others, each a function.
# * `minisd/more_samplers/cfg_pp.py`: a sampler that treats the two predictions differently.
#
# Next lesson: [what a latent is](09-what-a-latent-is.ipynb).
