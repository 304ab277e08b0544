"""Stage 3: the UNet, from noise and words to latents; the text encoder follows at a slower rate.

eps objective on SD's own schedule (Ho et al. 2020; minisd.schedule): the network is shown
sqrt(abar) * x0 + sqrt(1 - abar) * noise and asked for the noise.

The squared error is weighted by min(SNR + 0.1, 5) / SNR, with SNR = abar / (1 - abar). Multiplied
by SNR it would be the error of x0, so that reads: x0 counts SNR + 0.1 times, but 5 times at most.

- The cap is that of min-SNR (Hang et al. 2023). At t = 0 the latent's variance is 1,172 times the
  noise's, and plain eps asks for the last grain of that.
- The floor is for the noisiest levels, where the words alone decide what the picture shall be.
  Plain eps has SNR there, 1/200, and learns the words last. A floor of 1, which is v-prediction's
  weight (Salimans & Ho 2022), is too much: most of the error there is what nobody could know,
  background and place, and it drowned what was to be learned of details at the levels between.

One caption in ten is empty, which is what guidance compares with (Ho & Salimans 2022); and more of
them, up to one in two, the less noise there is. Of the rest, more and more are another picture's
from sigma 2 down: where the picture itself tells what it is, the network learns not to listen.
Otherwise guidance of 7.5 multiplies, step after step, what a small network says differently with
words and without, and draws confetti. Above sigma 1 the same guidance does nothing but good
(Kynkaanniemi et al. 2024 switch it off below; here that is learned, and the sampler is SD's).
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.schedule import ABAR
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import END, LENGTH, START
from weights.train import loop
from weights.train.cache import Cache
from weights.train.data import order
from weights.train.profiles import Profile, new_unet

FLOOR, CAP = 0.1, 5.0
EMPTY = (0.1, 0.5)  # where all is noise, where none is
WRONG = (0.45, 0.9)  # sqrt(abar), sigma 2 and 0.5: from where, and from where on nine in ten


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
    return (error * (snr + FLOOR).clamp(max=CAP) / snr).mean(), error.mean()


def train_diffusion(
    cache: Cache,
    text_encoder: TextEncoder,
    profile: Profile,
    folder: Path,
    seed: int,
    start: dict | None = None,
) -> tuple[nn.ModuleDict, dict, loop.Stopped | None]:
    """The averaged UNet and text encoder, how far they came (step, seconds), and whether it was
    asked to stop: what there is can be exported all the same.

    start: {"unet", "text_encoder", "step", "seconds"} of an exported file, to go on from it where
    the full state is not at hand: Adam's moments are lost, so the warm-up is run once more.
    """
    torch.manual_seed(seed)
    models = nn.ModuleDict({"unet": new_unet(profile), "text_encoder": text_encoder})
    if start:
        for part in models:
            models[part].load_state_dict(start[part])
    device = cache.latents.device
    models.to(device)
    if profile.channels_last and device.type == "cuda":
        models["unet"].to(memory_format=torch.channels_last)
    # Slower, for what the text encoder knows is more than a new UNet has to say to it.
    state = loop.State(models, slower="text_encoder")
    facts = profile.facts("diffusion") | {"seed": seed, **cache.made_of}
    if start:
        state.step = state.first_step = start["step"]
        state.seconds = start["seconds"]
    if (path := folder / "diffusion.pt").exists():
        state.load(path, facts)

    passes, batch = loop.Passes(models), profile.diffusion.batch
    empty = torch.tensor([START] + [END] * (LENGTH - 1), device=device)

    def loss_of(models: nn.ModuleDict, *batch: Tensor) -> dict[str, Tensor]:
        loss, plain = eps_loss(models, *batch)
        return {"loss": loss, "mse": plain}

    def losses_of(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, 4, step])
        x0, tokens = cache.batch(order(cache.n, seed, step, batch), rng)
        # One timestep from each of B equal spans: the same for every batch but for chance inside.
        t = ((np.arange(batch) + rng.random(batch)) * 1000 / batch).astype(int)
        t = rng.permutation(t)  # the parts of a batch alike
        clear = np.sqrt(ABAR)[t]
        unsaid = rng.random(batch) < np.interp(clear, (0, 1), EMPTY)
        wrong = rng.random(batch) < np.interp(clear, WRONG, (0, 0.9))
        t, unsaid, wrong = (torch.from_numpy(v).to(device) for v in (t, unsaid, wrong))
        tokens = torch.where(wrong[:, None], tokens.roll(1, 0), tokens)
        tokens = torch.where(unsaid[:, None], empty, tokens)
        noise_rng = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        return passes(loss_of, [x0, tokens, t, noise])

    stopped = None
    try:
        loop.train("diffusion", state, losses_of, profile, folder, facts)
    except loop.Stopped as asked:
        stopped = asked
    return state.average, {"step": state.step, "seconds": round(state.seconds)}, stopped
