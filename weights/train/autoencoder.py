"""Stage 1, the autoencoder: pictures to latents with a twelfth of the numbers, and back.

The loss is L1, of the pictures and of their slopes at four scales, plus a small KL term.

- L1 alone leaves edges soft: a blurred edge costs little if most of the picture is flat. The slopes
  (differences of neighbours) consist of nothing but edges, and at coarser scales they keep the
  shading right. They are a perceptual loss that needs no second network.
- KL is the distance of the posterior from a normal distribution. Its weight is very low: it only
  keeps the latents from growing, and makes the decoder tolerate a little noise. The decoder needs
  that, because to it the UNet's errors look like noise.
- There is no adversarial term. At a twelfth of the numbers (SD: a forty-eighth) drawings like these
  are sharp without one, and it would double the time of a step.

The decoder is then trained alone for some time more.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.vae import SCALE, VAE
from weights.train import loop
from weights.train.pictures import sheet
from weights.train.pool import Pool
from weights.train.profiles import Profile, new_vae

KL = 5e-5
SLOPES = 1.0
STD = 2.0  # standard deviation of the latents after SCALE; fold_scale says why it is not 1


def slopes(image: Tensor) -> list[Tensor]:
    """Differences of neighbours, across and down."""
    return [image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]]


def distance(image: Tensor, target: Tensor) -> Tensor:
    """L1 of pictures and slopes, at full size, half, a quarter and an eighth."""
    total = F.l1_loss(image, target)
    for _ in range(4):
        pairs = zip(slopes(image), slopes(target), strict=True)
        total = total + SLOPES / 4 * sum(F.l1_loss(a, b) for a, b in pairs)
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    return total


@torch.no_grad()
def decibels(image: Tensor, target: Tensor) -> Tensor:
    """PSNR of a batch in [-1, 1], for the progress line."""
    return 10 * torch.log10(4 / F.mse_loss(image.float(), target))


class RoundTrip(nn.Module):
    """Encode, draw from the posterior, decode: -> (picture, KL)."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.vae.moments(image).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        z = mean + torch.exp(0.5 * log_variance) * noise
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return self.vae.decode(SCALE * z), kl


def train_autoencoder(
    pool: Pool, profile: Profile, folder: Path, seed: int, start: dict | None = None
) -> VAE:
    """A trained autoencoder: averaged weights, latents of deviation STD. `folder` keeps the state.

    start: the state dict of an earlier autoencoder, to begin with in place of random weights.
    """
    device = pool.pictures.device
    torch.manual_seed(seed)
    model = RoundTrip(new_vae(profile)).to(device)
    if start:
        model.vae.load_state_dict(start)
        # With the latents that training found by itself. Those of a file are 5 times as large, so
        # the KL term would act on them 30 times as strongly.
        fold_scale(model.vae, [pool.batch(256, torch.Generator(device).manual_seed(seed))], 1.0)
    if profile.channels_last and device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    state = loop.State(model)
    facts = profile.facts("autoencoder") | {"seed": seed, "pictures": len(pool.plain)}
    if (path := folder / "autoencoder.pt").exists():
        state.load(path, facts)
    batch, passes = profile.autoencoder.batch, loop.Passes(model, compiled=profile.compiled)
    shape = (batch, 4, *[profile.size // model.vae.factor] * 2)

    def loss_of(model: RoundTrip, image: Tensor, noise: Tensor) -> dict[str, Tensor]:
        decoded, kl = model(image, noise)
        loss = distance(decoded.float(), image) + KL * kl
        return {"loss": loss, "kl": kl, "dB": decibels(decoded, image)}

    def losses_of(step: int) -> dict[str, Tensor]:
        rng = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
        image = pool.batch(batch, rng)
        noise = torch.randn(shape, generator=rng, device=device)
        return passes(loss_of, [image[torch.randperm(batch, generator=rng, device=device)], noise])

    loop.train("autoencoder", state, losses_of, profile, folder, facts)
    vae = state.average.vae.requires_grad_(False)
    rng = torch.Generator(device).manual_seed(seed + 2)
    fold_scale(vae, [pool.batch(64, rng) for _ in range(16)])
    return vae


def train_decoder(pool: Pool, vae: VAE, profile: Profile, folder: Path, seed: int) -> None:
    """Train the decoder some more, in place, without changing the latents.

    What the UNet has learned about the latents stays valid, so this can be done at any time, even
    after the UNet's training. SD's own decoder was improved this way: vae-ft-mse.
    """
    device = pool.pictures.device
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    state = loop.State(half.requires_grad_(True))
    facts = profile.facts("decoder") | {"seed": seed, "latents": latents_hash(vae)}
    if (path := folder / "decoder.pt").exists():
        state.load(path, facts)
    batch, passes = profile.decoder.batch, loop.Passes(half)

    def loss_of(half: nn.ModuleDict, z: Tensor, image: Tensor) -> dict[str, Tensor]:
        z = (z / SCALE).to(half["post_quant_conv"].weight.dtype)
        decoded = half["decoder"](half["post_quant_conv"](z))
        return {"loss": distance(decoded.float(), image), "dB": decibels(decoded, image)}

    def losses_of(step: int) -> dict[str, Tensor]:
        rng = torch.Generator(device).manual_seed((seed + 1) * 1_000_003 + step)
        image = pool.batch(batch, rng)
        with torch.no_grad():
            z = vae.encode(image)
        return passes(loss_of, [z, image])

    loop.train("decoder", state, losses_of, profile, folder, facts)
    half.load_state_dict(state.average.state_dict())
    half.requires_grad_(False)


def latents_hash(vae: VAE) -> str:
    """A hash of the weights that make latents."""
    digest = hashlib.sha256()
    for part in (vae.encoder, vae.quant_conv):
        for tensor in part.state_dict().values():
            digest.update(tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def fold_scale(vae: VAE, images: list[Tensor], target: float = STD / SCALE) -> None:
    """Bring each unscaled latent channel to mean 0 and this standard deviation, in place.

    By default, that gives a standard deviation of STD after SCALE.

    This changes the 1x1 convolutions on both sides of the latents. decode(encode(x)) stays the
    same. For SD's autoencoder, 0.18215 was measured after training; here the latents are made to
    fit that number, so that every program that loads the file can use it.

    SD's latents have a standard deviation of 1 and 64x64 places. Neighbours say nearly the same, so
    what noise hides at one place can be seen at the next. With 16x16 places the same noise hides
    more of a picture, and img2img at strength 0.3 tears drawings. Larger latents undo that (Chen
    2023; Hoogeboom et al. 2023), and need no other schedule.
    """
    z = torch.cat([vae.encode(image) / SCALE for image in images])  # (N, 4, h, w)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    change_latents(vae, mean, target / std)


@torch.no_grad()
def change_latents(vae: VAE, mean: Tensor, gain: Tensor) -> None:
    """Subtract a mean from each unscaled latent channel, then multiply it by a gain, in place."""
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.bias[4:] += 2 * gain.log()  # the log variance
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]


@torch.no_grad()
def reconstructions(vae: VAE, images: Tensor, path: Path, columns: int = 16) -> None:
    """Write a sheet of originals, each above its reconstruction."""
    decoded = torch.cat([vae.decode(vae.encode(batch)) for batch in images.split(32)])
    originals, copies = (
        ((pictures.clamp(-1, 1) + 1) / 2).split(columns) for pictures in (images, decoded)
    )
    pairs = zip(originals, copies, strict=True)
    sheet([row for pair in pairs for row in pair], path)
