"""One .safetensors in the layout of an SD 1.x checkpoint, with what names and shapes don't tell."""

import json
import os
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import minisd
from minisd.files.kinds import PREFIXES
from minisd.vae import VAE
from weights.fit_latent_rgb import fit
from weights.train.profiles import Profile

LICENCE = (
    "MIT; trained on Fluent Emoji (MIT), Noto Emoji (Apache-2.0) and captions of emojibase-data "
    "(MIT): see the notice beside this file"
)


def export(
    path: Path,
    vae: VAE,
    models: nn.ModuleDict,
    profile: Profile,
    trained: dict,
    pictures: list[Image.Image],
) -> minisd.StableDiffusion:
    """Write the file in float16, read it back as anyone would, and fit the previews' factors to it
    on `pictures`. Returns what minisd.load makes of it."""
    parts = {"vae": vae, "unet": models["unet"], "text_encoder": models["text_encoder"]}
    tensors = {
        PREFIXES[part] + name: tensor.detach().to("cpu", torch.float16).contiguous()
        for part, model in parts.items()
        for name, tensor in model.state_dict().items()
    }
    facts = {
        "name": f"minisd emoji {profile.size}",
        "unet_heads": profile.heads,
        "text_heads": profile.heads,
        "native_size": profile.size,
        "licence": LICENCE,
        "train": {"profile": profile.name, **trained},  # for take_up; minisd does not read it
    }

    def write() -> minisd.StableDiffusion:
        save_file(tensors, f"{path}.part", metadata={"minisd": json.dumps(facts)})
        os.replace(f"{path}.part", path)
        return minisd.load(path)

    factors, _ = fit(write(), pictures)
    rows = [[round(float(value), 4) for value in row] for row in factors]
    facts |= {"latent_rgb": rows[:4], "latent_rgb_bias": rows[4]}
    return write()


def training(path: Path) -> dict:
    """What an exported file says of its training: profile, step, seconds; {} of other files."""
    with safe_open(path, "pt") as file:
        return json.loads((file.metadata() or {}).get("minisd", "{}")).get("train", {})


def take_up(path: Path) -> dict:
    """What an exported file knows of its training, to go on from: state dicts of its parts in
    float32, step, seconds."""
    trained = training(path)
    if not {"step", "seconds"} <= set(trained):
        raise SystemExit(f"{path} was not exported by weights.train")
    sd = minisd.load(path)
    states = {part: getattr(sd, part).state_dict() for part in PREFIXES}
    return {**states, **{key: trained[key] for key in ("step", "seconds")}}
