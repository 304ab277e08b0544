"""Stage 3: the UNet learns to predict noise. The text encoder learns with it, at a slower rate.

The eps objective on SD's own schedule (Ho et al. 2020; minisd.schedule): the network gets
sqrt(abar) * x0 + sqrt(1 - abar) * noise, and must predict the noise.

The squared error is weighted by min(SNR + 0.1, 5) / SNR, where SNR = abar / (1 - abar). The squared
error of x0 is that of eps divided by SNR. So the error of x0 is weighted by SNR + 0.1, but at most
by 5.

- The cap is that of min-SNR (Hang et al. 2023). Without it the network would spend its effort on
  t = 0, where the latent's variance is 1,172 times the noise's.
- The floor is for the noisiest levels, where only the prompt decides what the picture becomes.
  There the plain eps loss has the weight SNR, 1/200, so the prompt is learned last. A floor of 1,
  which is v-prediction's weight (Salimans & Ho 2022), is too much. Most of the error there comes
  from things that the network cannot know, such as background and place. That error drowned the
  details, which are learned at the levels between.

At the highest level one caption in ten is empty, because guidance compares with the empty prompt
(Ho & Salimans 2022). With less noise more captions are empty, up to one in two. From sigma 2 down,
more and more of the other captions are those of another picture: where the picture itself shows the
subject, the network learns to ignore the prompt. Without this, the small network's predictions with
and without the prompt differ by chance there. Guidance of 7.5 multiplies that difference at every
step, and the result is confetti. Above sigma 1 the same guidance only helps. (Kynkaanniemi et al.
2024 switch it off below. Here the network learns that, and the sampler stays as it is.)
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
EMPTY = (0.1, 0.5)  # the share of empty captions where sqrt(abar) is 0, and where it is 1
# The values of sqrt(abar) between which the share of wrong captions rises from 0 to WRONG_SHARE;
# they are those of sigma 2 and sigma 0.5.
WRONG, WRONG_SHARE = (0.45, 0.9), 0.9


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
    """(averaged UNet and text encoder, {"step", "seconds"}, Stopped or None).

    If the training is stopped, the models so far are returned and can be exported.

    start: {"unet", "text_encoder", "step", "seconds"} of an exported file, to continue from it when
    the full state is not available. Adam's moments are lost, so the warm-up runs once more.
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
    # Slower: the text encoder knows more than a new UNet can teach it.
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
        # One timestep from each of B equal spans, so that all batches cover the levels evenly.
        t = ((np.arange(batch) + rng.random(batch)) * 1000 / batch).astype(int)
        t = rng.permutation(t)  # so that the parts of a batch (loop.Passes) cover them evenly too
        signal = np.sqrt(ABAR)[t]
        is_empty = rng.random(batch) < np.interp(signal, (0, 1), EMPTY)
        is_wrong = rng.random(batch) < np.interp(signal, WRONG, (0, WRONG_SHARE))
        t, is_empty, is_wrong = (torch.from_numpy(v).to(device) for v in (t, is_empty, is_wrong))
        tokens = torch.where(is_wrong[:, None], tokens.roll(1, 0), tokens)
        tokens = torch.where(is_empty[:, None], empty, tokens)
        noise_rng = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(x0.shape, generator=noise_rng, device=device)
        return passes(loss_of, [x0, tokens, t, noise])

    stopped = None
    try:
        loop.train("diffusion", state, losses_of, profile, folder, facts)
    except loop.Stopped as error:
        stopped = error
    return state.average, {"step": state.step, "seconds": round(state.seconds)}, stopped
