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
import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minisd.checkpoint.names import PREFIXES
from minisd.schedule import LOG_SIGMAS
from minisd.unet import timestep_embedding
from weights.train.export import training_facts
from weights.train.loop import replacing

STEPS, RATE = 4000, 1e-3  # of the fit
EMBEDDING = ("0.weight", "0.bias", "2.weight", "2.bias")


def enlarge(path: Path, to: Path, factor: float = 2.0) -> float:
    """Write the new file. Returns how much of the time embedding's variance the fit misses."""
    if not training_facts(path):
        raise SystemExit(f"{path} was not exported by weights.train")
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["minisd"])
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}

    def changed(part: str, name: str) -> Tensor:
        return tensors[PREFIXES[part] + name]

    changed("vae", "quant_conv.weight")[:4] *= factor
    changed("vae", "quant_conv.bias")[:4] *= factor
    changed("vae", "quant_conv.bias")[4:] += 2 * np.log(factor)  # the log variance
    changed("vae", "post_quant_conv.weight").div_(factor)
    at_one = (2 / (1 + factor**-2)) ** 0.5 / factor  # the factor that is right at sigma 1
    changed("unet", "input_blocks.0.0.weight").mul_(at_one)
    embedding = {name: changed("unet", f"time_embed.{name}") for name in EMBEDDING}
    fitted, missed = fit_embedding(embedding, factor)
    for name in EMBEDDING:
        changed("unet", f"time_embed.{name}").copy_(fitted[name])

    facts["latent_rgb"] = [[value / factor for value in row] for row in facts["latent_rgb"]]
    facts["train"] |= {"step": 0, "seconds": 0}
    with replacing(to) as part:
        halves = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(halves, part, metadata={"minisd": json.dumps(facts)})
    return missed


def fit_embedding(state: dict[str, Tensor], factor: float) -> tuple[dict[str, Tensor], float]:
    """The time embedding for larger latents, and the share of its variance that the fit misses."""
    wide, narrow = state["0.weight"].shape
    embed = nn.Sequential(nn.Linear(narrow, wide), nn.SiLU(), nn.Linear(wide, wide))
    embed.load_state_dict(state)
    t = np.arange(1000)
    t_before = np.interp(LOG_SIGMAS - np.log(factor), LOG_SIGMAS, t)
    waves, waves_before = (
        timestep_embedding(torch.from_numpy(v).float(), narrow) for v in (t, t_before)
    )
    with torch.no_grad():
        target = embed(waves_before)
    optimizer = torch.optim.Adam(embed.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (embed(waves) - target).square().mean()
        loss.backward()
        optimizer.step()
        rate.step()
    return embed.state_dict(), float(loss.detach() / target.var())


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m weights.train.enlarge")
    parser.add_argument("file", type=Path)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--factor", type=float, default=2.0)
    args = parser.parse_args()
    missed = enlarge(args.file, args.to, args.factor)
    print(f"{args.to}: the fit misses {missed:.2%} of the time embedding's variance")
