"""Make the latents of an exported file larger, and keep what its UNet has learned.

    python -m weights.train.enlarge FILE --to NEW         # twice as large

A UNet for latents f times as large has the same task at sigma as the old one at sigma / f. So the
new one's time embedding is fitted to give at each timestep what the old one's gives at the timestep
of sigma / f. The other difference is the size of the UNet's input, 1 / f at low noise and 1 at
high noise. One factor for the first convolution cannot be right for both, so the UNet must then be
trained further:

    python -m weights.train --from NEW --minutes 0 0 0 60
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import minisd
from minisd.checkpoint.names import PREFIXES
from minisd.schedule import LOG_SIGMAS
from minisd.unet import timestep_embedding
from weights.train.autoencoder import change_latents
from weights.train.export import facts_of, write

STEPS, RATE = 4000, 1e-3  # of the fit


def enlarge(path: Path, to: Path, factor: float = 2.0) -> float:
    """Write the new file. Returns how much of the time embedding's variance the fit misses."""
    facts = facts_of(path)
    if "train" not in facts:
        raise SystemExit(f"{path} was not exported by weights.train")
    sd = minisd.load(path)
    change_latents(sd.vae, torch.zeros(4), torch.full((4,), factor))
    at_one = (2 / (1 + factor**-2)) ** 0.5 / factor  # the factor that is right at sigma 1
    with torch.no_grad():
        sd.unet.input_blocks[0][0].weight *= at_one
    missed = fit_embedding(sd.unet.time_embed, factor)
    facts["latent_rgb"] = [[value / factor for value in row] for row in facts["latent_rgb"]]
    facts["train"] |= {"step": 0, "seconds": 0}
    write(to, {part: getattr(sd, part) for part in PREFIXES}, facts)
    return missed


def fit_embedding(embed: nn.Sequential, factor: float) -> float:
    """Change the time embedding for larger latents, in place.

    Returns the share of its variance that the fit misses.
    """
    t = np.arange(1000)
    t_before = np.interp(LOG_SIGMAS - np.log(factor), LOG_SIGMAS, t)

    def waves(timesteps: np.ndarray) -> Tensor:
        return timestep_embedding(torch.from_numpy(timesteps).float(), embed[0].in_features)

    with torch.no_grad():
        target = embed(waves(t_before))
    inputs = waves(t)
    optimizer = torch.optim.Adam(embed.requires_grad_(True).parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (embed(inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        rate.step()
    return float(loss.detach() / target.var())


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m weights.train.enlarge")
    parser.add_argument("file", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--factor", type=float, default=2.0)
    args = parser.parse_args()
    missed = enlarge(args.file, args.to, args.factor)
    print(f"{args.to}: the fit misses {missed:.2%} of the time embedding's variance")
