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
# # 9. What a latent is
#
# **What are the four numbers at each place of a latent, and where does 0.18215 come from?**
#
# Stable Diffusion draws on latents, and its autoencoder turns them into pictures. One number in it
# is copied into every program of this kind: 0.18215. In this lesson you compute such a number, look
# into the four channels, and make pictures from latents without the decoder.

# %%
import torch

import minisd
from minisd.guidance import Guided
from minisd.images import to_pil, to_pils, to_tensor
from minisd.lessons import check, my_drawing, programs, sheet
from minisd.observe import Ledger
from minisd.observe.tiles import latent_image
from minisd.samplers import k_euler
from minisd.schedule import model
from minisd.vae import SCALE

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## There and back

# %%
x0 = sd.vae.encode(to_tensor(drawing))
back = to_pil(sd.vae.decode(x0))
numbers, values = x0.numel(), 3 * drawing.width * drawing.height
error = float((to_tensor(back) - to_tensor(drawing)).square().mean() ** 0.5) * 255 / 2
print(f"{values} numbers of the picture, {numbers} of the latent")
print(f"there and back: {error:.1f} levels of 255 from the drawing (root mean square)")
assert values == 3 * sd.vae.factor**2 / 4 * numbers
sheet([["drawing", "there and back"], [drawing, back]])

# %% [markdown]
# A latent has fewer numbers than its picture: four for each square of pixels, which is 4 pixels
# wide in the small model and 8 in SD 1.x. What comes back is close, but small details change.
#
# ## Four channels
#
# Each channel is shown in grey. Below each, 3 is added to the channel everywhere, and the result
# is decoded.

# %%
channels, changed = [], []
for channel in range(4):
    values = x0[0, channel]
    grey = ((values - values.min()) / (values.max() - values.min()) * 2 - 1).expand(1, 3, -1, -1)
    channels.append(to_pil(grey))
    moved = x0.clone()
    moved[:, channel] += 3
    changed.append(to_pil(sd.vae.decode(moved)))
sheet([["channel", "1", "2", "3", "4"], ["alone", *channels], ["plus 3", *changed]])

# %% [markdown]
# Each channel still looks like a small picture, so a latent is not a code without space: what
# stands at a place of the latent decides about that place of the picture. A channel is not a colour
# either. Adding to one changes several colours at once.
#
# ## Eight pictures
#
# For measurements we need more than one picture. The model draws eight.

# %%
things = ["house", "fire", "cat face", "pizza", "rocket", "sunflower", "red heart", "rainbow"]
noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
states = torch.cat([sd.text_states(f"{thing}, noto") for thing in things])
sigmas = model(6)
with torch.inference_mode():
    predict_eps = Guided(sd.unet, states, sd.text_states(""), guidance=1)
    *_, last = k_euler(predict_eps, sigmas[0] * noise.expand(8, -1, -1, -1), sigmas)
    pictures = to_pils(sd.vae.decode(last.x_next))
    images = torch.cat([to_tensor(picture) for picture in pictures])
    raw = sd.vae.moments(images)[:, :4]  # as the encoder gives them, not scaled
assert len(pictures) == 8
sheet([pictures], side=80)

# %% [markdown]
# ## Exercise 1: the factor
#
# The noise levels of the training are meant for latents of standard deviation 1. What the encoder
# gives is larger. So all latents are multiplied by one factor. The authors of Stable Diffusion
# computed it from their first batch of pictures, and wrote it down. Compute it for any list of
# latents: afterwards, all their numbers together must have the standard deviation 1.


# %% tags=["exercise"]
def scale_factor(latents):
    """The factor for a list of latents: one float."""
    ...  # your code


# %%
check("scale_factor", scale_factor)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `torch.cat([z.flatten() for z in latents])` puts all numbers into one list.
# </details>

# %%
measured = float(1 / raw.std())
print(f"the factor of these eight pictures is {measured:.3f}, and the program's is {SCALE}")
assert SCALE == 0.18215
assert 0.3 < measured / SCALE < 0.8

# %% [markdown]
# With SD 1.x's own autoencoder the two numbers would be close, but not equal, since the result
# depends on the pictures: 0.18215 is one over a standard deviation that was measured once.
#
# Here the program's factor is about twice the measured one: the small model's latents have a
# standard deviation of about 2, on purpose. SD 1.x's latents have 64x64 places, and neighbours say
# nearly the same. What the noise hides at one place can still be seen at the next. With 16x16
# places the same noise hides more of the picture. Latents that are twice as large make up for that,
# and all programs can keep their factor and their noise levels.
#
# ## Exercise 2: pictures without the decoder
#
# The decoder is slow. For a preview, a colour for each place is enough:
# `rgb = latent @ factors + bias`, with 4x3 factors and 3 biases. Find them by least squares, from
# latents (N, 4) and the colours (N, 3) at the same places.


# %% tags=["exercise"]
def rgb_map(latents, colours):
    """(factors, bias), of shapes (4, 3) and (3,)."""
    ...  # your code


# %%
check("rgb_map", rgb_map)

# %% [markdown]
# <details><summary>Hint</summary>
#
# A bias is a factor for a number that is always 1. So put a column of ones beside the latents, and
# let `torch.linalg.lstsq(columns, colours).solution` find five rows. The last row is the bias.
# </details>
#
# Here it is done for the eight pictures. The colour of a place is the mean of its pixels. R^2 is
# the share of the colours' variance that the map explains.

# %%
latents = (SCALE * raw).permute(0, 2, 3, 1).reshape(-1, 4)
small = torch.nn.functional.avg_pool2d(images, sd.vae.factor)
colours = small.permute(0, 2, 3, 1).reshape(-1, 3)
columns = torch.cat([latents, torch.ones(len(latents), 1)], dim=1)
solution = torch.linalg.lstsq(columns, colours).solution
rest = colours - columns @ solution
r_squared = float(1 - rest.square().sum() / (colours - colours.mean(0)).square().sum())
print(f"R^2 = {r_squared:.3f}")
assert 0.5 < r_squared < 1
previews = [latent_image(SCALE * z[None], solution[:4].tolist(), solution[4].tolist()) for z in raw]
sheet([["picture", *pictures], ["preview", *previews]], side=80)

# %% [markdown]
# The map explains more than half of the variance, with 15 numbers. So the channels hold mostly
# colour and brightness, mixed. The rest is detail, which only the decoder can read.
#
# ## Break it
#
# Three programs. The ledger agrees with all of them, since it looks at the beginning, and the end
# is wrong in one. A hook on the decoder's first layer measures the spread of what it gets.

# %%
cells, inputs = [], []
layer = sd.vae.post_quant_conv
for letter, program in programs.LATENT.items():
    hook = layer.register_forward_pre_hook(lambda _, args: inputs.append(float(args[0].std())))
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    hook.remove()
    print(
        f"{letter}: sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected; "
        f"spread of the decoder's input {inputs[-1]:.3f}"
    )
sheet([["", *programs.LATENT], ["", *cells]])

# %% [markdown]
# Which program is wrong, and by which factor is the decoder's input too small in it? Three
# decimals.

# %% tags=["exercise"]
pale = ...  # "A", "B" or "C"
factor = ...  # a number

# %%
check("undivided", (pale, factor))

# %% [markdown]
# ## What to read next
#
# * `minisd/vae.py`: the autoencoder. `SCALE` stands at the top.
# * `minisd/observe/tiles.py`: the previews. `weights/fit_latent_rgb.py` fits their factors.
# * `docs/ideas.md`, "Latents".
#
# Next lesson: [words, attention, surgery](10-words-attention-surgery.ipynb).
