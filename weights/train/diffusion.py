"""Stage 2: the UNet and the text encoder, together, from noise and words to latents.

eps objective on SD's own schedule (Ho et al. 2020; minisd.schedule): the network is shown
sqrt(abar) * x0 + sqrt(1 - abar) * noise and asked for the noise.

The squared error is weighted by min(SNR, 5) / SNR (min-SNR, Hang et al. 2023), not plainly. Plain
weighting asks for the noise as strictly where there is next to none of it: at t = 0, where the
latent's variance is 1,172 times the noise's, that is a demand on its last grain. Those levels have
the largest gradients and the least to say about what is in the picture. With the weight every
level below SNR 5 is judged by its x0 alone; half an hour is spent on shapes and colours.

One caption in ten is empty, which is what guidance compares with (Ho & Salimans 2022). Latents are
encoded once and kept in a file: each picture in several variants (pictures.py), each with several
captions.
"""

from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from minisd.schedule import ABAR
from minisd.tokenizer import END, LENGTH, START
from minisd.vae import VAE
from weights.train import loop
from weights.train.autoencoder import latents_hash, pieces
from weights.train.captions import Words, caption, synonyms
from weights.train.data import Pack, order
from weights.train.pictures import Stylist, draw
from weights.train.profiles import Profile, new_unet_and_text

MAX_SNR = 5.0
EMPTY = 0.1


@torch.no_grad()
def encode_all(pack: Pack, vae: VAE, profile: Profile, path: Path, seed: int) -> dict:
    """latents (N, variants, 4, h, w) float16 and tokens (N, variants, captions, PLACES) int32.

    Kept at `path`: a cache that may be deleted. It is made anew if autoencoder or profile changed.
    Variant 0 is the plain picture, or almost.
    """
    n, v = len(pack.rows), profile.variants
    made_of = {"vae": latents_hash(vae), "n": n, "variants": v, "seed": seed}
    if path.exists():
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["made_of"] == made_of:
            return kept
    stylist, words, alike = Stylist(pack.rows), Words(), synonyms(pack.rows)
    device, everything = pack.rgba.device, np.arange(n)
    latents, tokens = [], []
    for variant in range(v):
        looks = stylist(everything, np.random.default_rng([seed, 3, variant]), plain=variant == 0)
        coded = []
        for some, part in pieces(everything, looks, 128):
            with torch.autocast(device.type, torch.bfloat16):
                coded.append(vae.encode(draw(pack, some, part)).to(torch.float16).cpu())
        latents.append(torch.cat(coded))
        said = np.empty((n, profile.captions), object)
        for i, row in enumerate(pack.rows):
            rng = Random(f"{seed} {variant} {i}")
            look, other = looks.of(i), pack.rows[looks.other[i]]
            for k in range(profile.captions):
                text = caption(rng, row, alike[row["codepoint"]], look, other)
                said[i, k] = words(text)
        tokens.append(torch.from_numpy(np.array(said.tolist()).astype(np.int32)))
        print(f"latents      variant {variant + 1} of {v}", flush=True)
    made = {"latents": torch.stack(latents, 1), "tokens": torch.stack(tokens, 1)}
    made["made_of"] = made_of
    loop.save(made, path)
    return made


def eps_loss(
    models: nn.ModuleDict, x0: Tensor, tokens: Tensor, t: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """(weighted, plain) squared error of the predicted noise; t (B,) int64."""
    abar = torch.tensor(ABAR, device=x0.device, dtype=torch.float32)[t]
    a, b = abar.sqrt()[:, None, None, None], (1 - abar).sqrt()[:, None, None, None]
    context = models["text_encoder"](tokens)
    eps = models["unet"](a * x0 + b * noise, t.float(), context)
    error = F.mse_loss(eps.float(), noise, reduction="none").mean((1, 2, 3))  # (B,)
    snr = abar / (1 - abar)
    return (error * snr.clamp(max=MAX_SNR) / snr).mean(), error.mean()


def train_diffusion(
    cache: dict,
    profile: Profile,
    folder: Path,
    seed: int,
    device: torch.device,
    start: dict | None = None,
) -> tuple[nn.ModuleDict, dict, loop.Stopped | None]:
    """The averaged UNet and text encoder, how far they came (step, seconds), and whether it was
    asked to stop: what there is can be exported all the same.

    start: {"unet", "text_encoder", "step", "seconds"} of an exported file, to go on from it where
    the full state is not at hand: Adam's moments are lost, so the warm-up is run once more.
    """
    torch.manual_seed(seed)
    models = new_unet_and_text(profile)
    if start:
        for part in models:
            models[part].load_state_dict(start[part])
    models.to(device)
    if profile.channels_last and device.type == "cuda":
        models["unet"].to(memory_format=torch.channels_last)
    state = loop.State(models)
    facts = profile.facts("diffusion") | {"seed": seed, **cache["made_of"]}
    if start:
        state.step = state.first_step = start["step"]
        state.seconds = start["seconds"]
    if (path := folder / "diffusion.pt").exists():
        state.load(path, facts)

    latents, tokens = cache["latents"].to(device), cache["tokens"].to(device)
    n, v, batch = len(latents), latents.shape[1], profile.diffusion.batch
    empty = torch.tensor([START] + [END] * (LENGTH - 1), device=device)
    # On the CPU plain softmax attention is faster to train than the fused one at heads this narrow.
    cpu = device.type == "cpu"

    def loss_of(*batch: Tensor) -> dict[str, Tensor]:
        # Each part's own casts of the weights: the cache of autocast is not for several threads.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=not cpu):
            loss, plain = eps_loss(models, *batch)
        return {"loss": loss, "mse": plain}

    def losses_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, 4, step])
        which = torch.from_numpy(order(n, seed, step, batch)).to(device)
        # The plain variant as often as all others together with it would make a third.
        variant = rng.integers(v, size=batch) * (rng.random(batch) > 0.25)
        variant = torch.from_numpy(variant).to(device)
        said = torch.from_numpy(rng.integers(tokens.shape[2], size=batch)).to(device)
        ids = F.pad(tokens[which, variant, said].long(), (0, LENGTH - tokens.shape[3]), value=END)
        unsaid = torch.from_numpy(rng.random(batch) < EMPTY).to(device)
        ids = torch.where(unsaid[:, None], empty, ids)
        # One timestep from each of B equal spans: the same for every batch but for chance inside.
        t = torch.from_numpy(((np.arange(batch) + rng.random(batch)) * 1000 / batch).astype(int))
        noise_rng = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        x0 = latents[which, variant].float()
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        everything = [x0, ids, t.to(device), noise]
        if cpu:
            with sdpa_kernel(SDPBackend.MATH):
                return loop.side_by_side(loss_of, [*models.parameters()], everything)
        losses = loss_of(*everything)
        losses["loss"].backward()
        return losses

    stopped = None
    try:
        loop.train("diffusion", state, losses_of, profile, folder, facts)
    except loop.Stopped as asked:
        stopped = asked
    return state.average, {"step": state.step, "seconds": round(state.seconds)}, stopped
