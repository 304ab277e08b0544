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
# # 10. Words, attention, surgery
#
# **Where in the picture does the network read which word, and what happens if you change one?**
#
# A prompt becomes numbers in two stages: tokens, and then a vector for each token. In the network
# each place of the picture reads from these vectors. In this lesson you compute how much it reads
# from each, and make one word louder without changing the prompt.

# %%
import torch

import minisd
from minisd.attention import attention
from minisd.figures.attention import attention_strip
from minisd.guidance import Guided
from minisd.images import to_pils
from minisd.lessons import check, my_drawing, programs, sheet
from minisd.observe import AttentionMaps, Ledger, Trace, together
from minisd.observe.attention_maps import words_of
from minisd.samplers import k_euler
from minisd.schedule import model

torch.set_num_threads(1)
sd = minisd.load()
drawing = my_drawing("my-drawing.png", sd.native_size)
prompt = "house, noto"  # what you drew, and a style

# %% [markdown]
# ## Tokens
#
# The tokenizer cuts the prompt into pieces from a fixed list of 49,408, and fills up to 77.

# %%
tokens = sd.tokenizer([prompt])
words, n_tokens = words_of(sd.tokenizer, [prompt])
print(tokens[0, : n_tokens + 4].tolist(), "...")
for word in words:
    print(f"{word.text!r} has the places {word.places}")
assert tokens.shape == (1, 77)
assert tokens[0, 0] == 49406 and tokens[0, -1] == 49407  # start, end
assert sd.text_states(prompt).shape[:2] == (1, 77)

# %% [markdown]
# Place 0 is the start token, 49406. After the last word comes the end token, 49407, which also
# fills the rest of the 77 places. A rare word has several tokens, and so several places. The text
# encoder makes a vector of each, the **text states**.
#
# ## Where the words are read
#
# At each place of the picture, the network compares a *query* with the *keys* of the 77 text
# states. The results become shares that sum to 1. An observer records them in each step.

# %%
settings = {"strength": 0.8, "steps": 10, "guidance": 4, "sampler": "k_euler", "seed": 1}
with AttentionMaps(sd, prompt) as maps, Trace(sd) as trace:
    minisd.img2img(sd, prompt, drawing, observe=together(maps, trace), **settings)
with torch.inference_mode():
    pictures = to_pils(sd.vae.decode(torch.cat(trace.x0)))
assert torch.allclose(maps.steps[0].sum(dim=1), torch.ones(()), atol=1e-4)
ends = float(torch.cat(maps.steps)[:, [0, -1]].sum(dim=1).mean())
assert ends > sum(float(maps.word(i).mean()) for i in range(len(maps.words)))
attention_strip(maps, pictures, prompt, size=72)

# %% [markdown]
# Each row belongs to a word. Bright places read more of it than the average place does. The
# percentage is the word's share of all attention. It is small: more goes to the start token and to
# the end tokens than to all words together.
#
# ## Exercise 1: the shares
#
# Write what happens at one layer. `q` has a row of numbers for each place, and `k` one for each
# word. The numbers of a row belong to several **heads**, in equal parts: the first `d` to the first
# head, and so on. Each head works alone: `softmax(q k^T / sqrt(d))`. Return the mean over the
# heads.


# %% tags=["exercise"]
def shares(q, k, heads):
    """q (B, N, C), k (B, M, C) -> (B, N, M), each row of which sums to 1."""
    ...  # your code


# %%
check("shares", shares)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `q.unflatten(-1, (heads, -1)).transpose(1, 2)` has the shape (B, heads, N, d). Do the same to k.
# `q @ k.transpose(-1, -2)` gives all products. The softmax goes over the last dimension, the mean
# over dimension 1.
# </details>
#
# ## A louder word
#
# Programs let you write `(house:1.5)` to make a word louder. What is 1.5 times a word? ComfyUI
# takes the text states of the empty prompt, and moves the word's states away from them: 1.5 times
# as far.
#
# ## Exercise 2: emphasize
#
# `states` and `empty` are text states, and `places` are the word's places among the 77. Only there
# may anything change. Do not change `states` itself.


# %% tags=["exercise"]
def emphasize(states, empty, places, weight):
    """New text states (1, 77, C), with the word at `places` made louder."""
    ...  # your code


# %%
check("emphasize", emphasize)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Begin with `result = states.clone()`. Then set `result[:, places]` to the empty prompt's states at
# these places plus weight times the difference.
# </details>
#
# The next cell does this to the first word of the prompt, for five weights.

# %%
states, empty = sd.text_states(prompt), sd.text_states("")
first = words[0].places
weights = (0.0, 0.5, 1.0, 1.5, 2.5)
contexts = []
for weight in weights:
    context = states.clone()
    context[:, first] = empty[:, first] + weight * (states[:, first] - empty[:, first])
    contexts.append(context)
assert torch.equal(contexts[2], states) or torch.allclose(contexts[2], states, atol=1e-5)
noise = torch.randn(trace.noise.shape, generator=torch.Generator().manual_seed(1))
sigmas = model(6)
with torch.inference_mode():
    predict_eps = Guided(sd.unet, torch.cat(contexts), empty, guidance=4)
    *_, last = k_euler(predict_eps, sigmas[0] * noise.expand(5, -1, -1, -1), sigmas)
    louder = to_pils(sd.vae.decode(last.x_next))
ways = [float((y - last.x_next[2]).square().mean() ** 0.5) for y in last.x_next]
assert ways[2] == 0 and ways[0] > 0 and ways[4] > 0
sheet(
    [
        [f"weight of\n{words[0].text!r}", *map(str, weights)],
        ["result", *louder],
        ["distance from\nweight 1", *(f"{way:.2f}" for way in ways)],
    ]
)

# %% [markdown]
# At weight 0 the word's own states are gone. Still the picture may show the thing: the text encoder
# has already mixed the word into the states that come after it, since each state sees all words
# before it. So a word is not stored at its places alone.

# %%
word = "rocket" if words[0].text != "rocket" else "house"
other = sd.text_states(prompt.replace(words[0].text, word))
after = slice(first[-1] + 1, n_tokens + 2)
changed = float((other - states)[:, after].abs().mean())
assert torch.equal(other[:, 0], states[:, 0])  # what stands before the word does not change
assert changed > 0.01
print(f"with another first word, the states after it change by {changed:.2f} on average")

# %% [markdown]
# ## Break it
#
# The last bug. Three programs: all levels agree, all shares sum to 1, nothing crashes, and each
# picture could be right. We look into one attention layer. From its queries, keys and values, the
# layer's output is computed again with 1, 2, 4, 8 and 16 heads. The right number gives the same
# output as the program.

# %%
layer = next(layer for name, layer in sd.unet.named_modules() if name.endswith("attn2"))
recorded = {}  # of the first call: each part's input and output


def record(part):
    def hook(_, args, output):
        recorded.setdefault(part, (args[0], output))

    return getattr(layer, part).register_forward_hook(hook)


cells = []
for letter, program in programs.HEADS.items():
    recorded.clear()
    hooks = [record(part) for part in ("to_q", "to_k", "to_v", "to_out")]
    with Ledger(sd, spoken=True) as ledger:
        cells.append(program.draw(sd, prompt, drawing, observe=ledger))
    for hook in hooks:
        hook.remove()
    q, k, v = (recorded[part][1] for part in ("to_q", "to_k", "to_v"))
    print(f"{letter}: sigma {ledger.sigma_added:.3f} added, {ledger.sigma_expected:.3f} expected")
    for heads in (1, 2, 4, 8, 16):
        gap = float((attention(q, k, v, heads) - recorded["to_out"][0]).abs().max())
        print(f"   with {heads:2} heads, the output is {gap:.5f} away")
sheet([["", *programs.HEADS], ["", *cells]])

# %% [markdown]
# The model was trained with one number of heads. Which program uses another one, and how many times
# as many?

# %% tags=["exercise"]
many_headed = ...  # "A", "B" or "C"
times_as_many = ...  # a number

# %%
check("heads", (many_headed, times_as_many))

# %% [markdown]
# ## What to read next
#
# * `minisd/attention.py`: one function of ten lines, for all three models.
# * `minisd/unet.py`, `CrossAttention`, and `minisd/text_encoder.py`.
# * `minisd/observe/attention_maps.py`: how the maps are recorded.
# * `minisd/dialects/comfyui_prompts.py` and `a1111_prompts.py`: what programs do with weights.
#
# This was the last lesson. From here, follow a picture through the code in the order of the README,
# or write a sampler of your own (`docs/write-your-own-sampler.md`) and enter it on the board
# (`minisd lab FILE.py:FUNCTION --board`).
