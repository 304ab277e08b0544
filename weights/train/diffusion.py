"""Stage 3: the UNet learns to predict noise. The text encoder learns with it, at a slower rate.

The eps objective on SD's own schedule (Ho et al. 2020; minisd.schedule): the network gets
sqrt(abar) * x0 + sqrt(1 - abar) * noise, and must predict the noise.

The squared error is weighted by min(SNR + 0.1, 5) / SNR, where SNR = STD^2 abar / (1 - abar), and
STD is that of the latents, 2. The squared error of x0, as a share of its variance, is that of eps
divided by SNR. So the error of x0 is weighted by SNR + 0.1, but at most by 5.

- The cap is that of min-SNR (Hang et al. 2023). Without it the network would spend its effort on
  t = 0, where the latent's variance is 4,690 times the noise's.
- The floor is for the noisiest levels, where only the prompt decides what the picture becomes.
  There the plain eps loss has the weight SNR, 1/53, so the prompt is learned last. A floor of 1,
  which is v-prediction's weight (Salimans & Ho 2022), is too much. Most of the error there comes
  from things that the network cannot know, such as background and place. That error drowned the
  details, which are learned at the levels between.

At the highest level one caption in ten is empty, because guidance compares with the empty prompt
(Ho & Salimans 2022). With less noise more captions are empty, up to one in two. From sigma 3.2 down
more and more of the other captions are those of another picture: where the picture itself shows the
subject, the network learns to ignore the prompt. Without this, the small network's predictions with
and without the prompt differ by chance there. Guidance of 7.5 multiplies that difference at every
step, and the result is confetti. With more noise the same guidance only helps. (Kynkaanniemi et al.
2024 switch it off below some level. Here the network learns that, and the sampler stays as it is.)

The pictures depend on the noise level too (`KINDS_AT`). With much noise they are the things that
the prompts name. With little noise, many are pictures of anything, with any caption or none: there
the network must keep what it sees. Between are rough drawings of the things, with the same captions
as the things, so that img2img changes a drawing gradually.

Text-to-image starts from noise alone, with nothing of a picture in it. Even the noisiest level of
the schedule is not like that: its x holds 0.07 x0, and x0 is twice as large as SD's. A network that
has only seen such x takes the chance mean of the noise for that of a picture. (Lin et al. 2024, who
saw this in SD, change the schedule.) So above sigma 2, half of the pictures are in x only with the
share 1 - sigma / 14.6. That is x on the straight way from noise alone to a picture. The target is
the noise that gives all of x0, so `x0 = x - sigma * eps` still holds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.schedule import ABAR, SIGMAS
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import END, LENGTH, START
from weights.train import loop
from weights.train.autoencoder import STD
from weights.train.cache import Cache
from weights.train.profiles import Profile, new_unet

FLOOR, CAP = 0.1, 5.0
EMPTY = (0.1, 0.5)  # the share of empty captions where sqrt(abar) is 0, and where it is 1
# The values of sqrt(abar) between which the share of wrong captions rises from 0 to WRONG_SHARE;
# they are those of sigma 3.2 and sigma 0.9.
WRONG, WRONG_SHARE = (0.3, 0.75), 0.9
# Above this sigma, this share of the pictures is only in part in x.
FROM_NOISE, FROM_NOISE_SHARE = 2.0, 0.5
PLAIN_SHARE = 0.5  # of the things: those that are almost unchanged
# The shares of things, rough drawings and pictures of anything at these timesteps.
KINDS_AT = {
    0: (0.36, 0.24, 0.40),
    400: (0.36, 0.24, 0.40),
    560: (0.45, 0.30, 0.25),
    700: (0.64, 0.28, 0.08),
    820: (0.84, 0.16, 0.0),
    930: (1.0, 0.0, 0.0),
    1000: (1.0, 0.0, 0.0),
}


def kind_shares() -> Tensor:
    """(1000, 3): KINDS_AT for each timestep, by linear interpolation."""
    places = [*KINDS_AT]
    columns = zip(*KINDS_AT.values(), strict=True)
    rows = [np.interp(np.arange(1000), places, column) for column in columns]
    return torch.from_numpy(np.stack(rows, axis=1)).float()


@dataclass
class Choice:
    """Chooses the pictures, captions and timesteps of a batch, on the device of the cache."""

    cache: Cache
    batch: int
    seed: int

    def __post_init__(self) -> None:
        device = self.cache.latents.device
        self.abar = torch.tensor(ABAR, device=device, dtype=torch.float32)
        present = np.where(SIGMAS > FROM_NOISE, 1 - SIGMAS / SIGMAS[-1], 1)
        self.present = torch.from_numpy(present).float().to(device)
        signal = ABAR**0.5
        empty = np.interp(signal, (0, 1), EMPTY)
        wrong = np.interp(signal, WRONG, (0, WRONG_SHARE))
        self.is_empty, self.is_wrong = (
            torch.from_numpy(v).float().to(device) for v in (empty, wrong)
        )
        self.shares = kind_shares().to(device)
        self.empty = torch.tensor([START] + [END] * (LENGTH - 1), device=device)
        self.generator = torch.Generator(device)

    def __call__(self, step: int) -> list[Tensor]:
        """x0 (B, 4, h, w), tokens (B, 77), t, abar and present (B,), and noise like x0."""
        cache, b, generator = self.cache, self.batch, self.generator
        device = cache.latents.device
        generator.manual_seed(self.seed * 1_000_003 + step)

        def uniform() -> Tensor:
            return torch.rand(b, generator=generator, device=device)

        # One timestep from each of B equal spans, so that all batches cover the levels evenly; in
        # random order, so that the parts of a batch (loop.Passes) cover them evenly too.
        t = ((torch.randperm(b, generator=generator, device=device) + uniform()) * 1000 / b).long()
        t = t.clamp(max=999)
        things, drawings, anything = cache.kinds
        n = things // cache.variants
        emoji = (uniform() * n).long() * cache.variants
        variant = (uniform() * cache.variants).long()
        thing = emoji + torch.where(uniform() < PLAIN_SHARE, 0, variant)
        drawing = things + (uniform() * drawings).long()
        other = things + drawings + (uniform() * anything).long()
        kind, shares = uniform(), self.shares[t]
        index = torch.where(kind < shares[:, 0] + shares[:, 1], drawing, other)
        index = torch.where(kind < shares[:, 0], thing, index).clamp(max=len(cache.latents) - 1)
        caption = (uniform() * cache.tokens.shape[1]).long()
        x0, tokens = cache.take(index, caption)
        tokens = torch.where((uniform() < self.is_wrong[t])[:, None], tokens.roll(1, 0), tokens)
        tokens = torch.where((uniform() < self.is_empty[t])[:, None], self.empty, tokens)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        present = torch.where(uniform() < FROM_NOISE_SHARE, self.present[t], 1)
        return [x0, tokens, t, self.abar[t], present, noise]


def eps_loss(
    models: nn.ModuleDict,
    x0: Tensor,
    tokens: Tensor,
    t: Tensor,
    abar: Tensor,
    present: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """(weighted, plain) squared error of the predicted noise.

    t (B,) int64, abar (B,) of it; present (B,), the share of x0 that is in x.
    """
    a, b, share = (v[:, None, None, None] for v in (abar.sqrt(), (1 - abar).sqrt(), present))
    context = models["text_encoder"](tokens)
    eps = models["unet"](a * share * x0 + b * noise, t.float(), context)
    target = noise - a / b * (1 - share) * x0  # the noise from which x0 follows, all of it
    error = F.mse_loss(eps.float(), target, reduction="none").mean((1, 2, 3))  # (B,)
    snr = STD**2 * abar / (1 - abar)
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

    passes = loop.Passes(models, compiled=profile.compiled)
    choice = Choice(cache, profile.diffusion.batch, seed)

    def loss_of(models: nn.ModuleDict, *batch: Tensor) -> dict[str, Tensor]:
        loss, plain = eps_loss(models, *batch)
        return {"loss": loss, "mse": plain}

    def losses_of(step: int) -> dict[str, Tensor]:
        return passes(loss_of, choice(step))

    stopped = None
    try:
        loop.train("diffusion", state, losses_of, profile, folder, facts)
    except loop.Stopped as error:
        stopped = error
    return state.average, {"step": state.step, "seconds": round(state.seconds)}, stopped
